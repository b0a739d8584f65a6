// An order book: each side a row of small blocks, in order among each other and in no order inside.
//
// Three changes in four remove a level or put one where there was none, so keeping levels sorted would mean moving them
// all the time. Here a change finds its block by walking on from the change before, and its place in the block by
// comparing with every price there, without a branch that could be mispredicted. Order is made when somebody reads.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "decimal.hpp"
#include "sbe.hpp"

namespace sheetanchor {

using sbe::Level;

// The exchange hands out 5,000 levels a side; diffs add levels further out until the market is known whole. At this
// bound the outermost sixteenth is forgotten at once, so that staying at the bound costs nothing per change.
inline constexpr std::size_t LEVELS_MAX = 32768;

// In place of the price of a side's last known level: all of them are known.
inline constexpr std::int64_t WHOLE = 0;

enum class Which { bid, ask };

template <Which which>
class Side {
 public:
  Side() { replace({}); }

  // Sets each level to its new quantity; 0 removes it. The wire lists changes best first, so each search goes on from
  // the one before; in any other order it starts again at the best level. `changes` is a vector of levels, or a group of
  // a frame whose levels have been checked.
  template <class Changes>
  void apply(const Changes& changes) {
    std::size_t at = 0;
    std::int64_t before = which == Which::bid ? INT64_MIN : INT64_MAX;
    for (std::size_t nth = 0; nth < changes.size(); ++nth) {
      const Level change = changes[nth];
      if (!worse(change.price, before)) at = floors_.size() - 1;
      before = change.price;
      while (at > 0 && worse(change.price, floors_[at])) --at;
      if (block(at).count == BLOCK) at += split(at, change.price);
      set(block(at), change);
      if (block(at).count == 0 && floors_.size() > 1) at = drop(at);
    }
    tidy();
  }

  bool empty() const { return size_ == 0; }
  std::size_t size() const { return size_; }

  // Only of a side that is not empty.
  Level best() const {
    const auto& last = blocks_[order_.back()];
    std::size_t found = 0;
    for (std::size_t at = 1; at < last.count; ++at)
      if (worse(last.prices[found], last.prices[at])) found = at;
    return {last.prices[found], last.qtys[found]};
  }

  // Price of the last level, beyond which nothing is known if the side was cut off there; else WHOLE.
  std::int64_t edge(std::size_t cut_off) const {
    if (cut_off == 0 || size_ < cut_off) return WHOLE;
    const auto& last = blocks_[order_.front()];
    const auto end = last.prices + last.count;
    return which == Which::bid ? *std::min_element(last.prices, end) : *std::max_element(last.prices, end);
  }

  // How many of the best `depth` levels are at `edge` or better; `depth` if the side is known whole.
  std::size_t known_levels(std::size_t depth, std::int64_t edge) const {
    if (edge == WHOLE) return depth;
    const auto best = best_levels(depth);
    return static_cast<std::size_t>(
        std::count_if(best.begin(), best.end(), [edge](const Level& level) { return !worse(level.price, edge); }));
  }

  // At most `depth` levels, best first.
  std::vector<Level> best_levels(std::size_t depth) const {
    std::vector<Level> out;
    out.reserve(std::min(depth, size_) + BLOCK);
    for (std::size_t at = floors_.size(); at-- > 0 && out.size() < depth;) {
      const auto& from = blocks_[order_[at]];
      const auto sorted = static_cast<std::ptrdiff_t>(out.size());
      for (std::size_t nth = 0; nth < from.count; ++nth) out.push_back({from.prices[nth], from.qtys[nth]});
      std::sort(out.begin() + sorted, out.end(),
                [](const Level& a, const Level& b) { return worse(b.price, a.price); });
    }
    if (out.size() > depth) out.resize(depth);
    return out;
  }

  // Takes levels in any order; false when a price comes twice.
  bool replace(std::vector<Level> levels) {
    std::sort(levels.begin(), levels.end(), [](const Level& a, const Level& b) { return worse(a.price, b.price); });
    const auto twice = std::adjacent_find(levels.begin(), levels.end(),
                                          [](const Level& a, const Level& b) { return a.price == b.price; });
    if (twice != levels.end()) return false;
    blocks_.assign(levels.size() / (BLOCK / 2) + 1, Block{});
    floors_.assign(blocks_.size(), 0);
    order_.resize(blocks_.size());
    unused_.clear();
    size_ = 0;
    for (std::size_t at = 0; at < blocks_.size(); ++at) order_[at] = static_cast<std::uint32_t>(at);
    for (const auto& level : levels) {
      const auto at = size_ / (BLOCK / 2);
      if (block(at).count == 0) floors_[at] = level.price;
      set(block(at), level);
    }
    if (blocks_.back().count == 0 && floors_.size() > 1) drop(floors_.size() - 1);
    return true;
  }

  // Calls `visit(price, qty)` on every level, to be changed in place in a way that keeps their order; false when it is.
  template <class Visit>
  bool each(Visit visit) {
    replace(best_levels(size_));  // so that every floor is a level's price
    for (const auto id : order_)
      for (std::size_t nth = 0; nth < blocks_[id].count; ++nth)
        if (!visit(blocks_[id].prices[nth], blocks_[id].qtys[nth])) return false;
    std::int64_t none = 0;
    return std::all_of(floors_.begin(), floors_.end(), [&](std::int64_t& floor) { return visit(floor, none); });
  }

 private:
  // Two cache lines of prices: comparing with all of them costs less than one mispredicted branch.
  static constexpr std::size_t BLOCK = 16;

  struct Block {
    std::uint32_t count = 0;
    std::int64_t prices[BLOCK]{};
    std::int64_t qtys[BLOCK]{};
  };

  static bool worse(std::int64_t a, std::int64_t b) { return which == Which::bid ? a < b : a > b; }

  Block& block(std::size_t at) { return blocks_[order_[at]]; }

  // Overwrites the level of that price or appends one, and takes it out again if its quantity is 0. The block has room.
  // Places not in use hold price 0, which no level has, so that all of them can be compared without counting.
  void set(Block& into, const Level& level) {
    const std::size_t count = into.count;
    std::size_t found = count;
    for (std::size_t nth = 0; nth < BLOCK; ++nth) found = into.prices[nth] == level.price ? nth : found;
    const std::size_t filled = count + (found == count);
    const bool removed = level.qty == 0;
    into.prices[found] = level.price;
    into.qtys[found] = level.qty;
    const std::size_t last = filled - 1, from = removed ? last : found;
    into.prices[found] = into.prices[from];
    into.qtys[found] = into.qtys[from];
    into.prices[last] = removed ? 0 : into.prices[last];
    into.count = static_cast<std::uint32_t>(filled - removed);
    size_ += into.count - count;
  }

  // Moves the better half of a full block into a new one behind it; 1 if that is the one for `price`.
  std::size_t split(std::size_t at, std::int64_t price) {
    const auto id = unused_.empty() ? static_cast<std::uint32_t>(blocks_.size()) : unused_.back();
    if (unused_.empty()) blocks_.emplace_back();
    else unused_.pop_back();
    auto& old = block(at);
    auto& fresh = blocks_[id];
    std::array<Level, BLOCK> levels;
    for (std::size_t nth = 0; nth < BLOCK; ++nth) levels[nth] = {old.prices[nth], old.qtys[nth]};
    std::sort(levels.begin(), levels.end(), [](const Level& a, const Level& b) { return worse(a.price, b.price); });
    for (std::size_t nth = 0; nth < BLOCK; ++nth) {
      auto& to = nth < BLOCK / 2 ? old : fresh;
      to.prices[nth % (BLOCK / 2)] = levels[nth].price;
      to.qtys[nth % (BLOCK / 2)] = levels[nth].qty;
    }
    std::fill(old.prices + BLOCK / 2, old.prices + BLOCK, 0);
    std::fill(fresh.prices + BLOCK / 2, fresh.prices + BLOCK, 0);
    old.count = fresh.count = BLOCK / 2;
    const auto behind = static_cast<std::ptrdiff_t>(at) + 1;
    floors_.insert(floors_.begin() + behind, levels[BLOCK / 2].price);
    order_.insert(order_.begin() + behind, id);
    return worse(price, floors_[at + 1]) ? 0 : 1;
  }

  // Takes an empty block out; what was its range becomes the one below's. Answers where to go on.
  std::size_t drop(std::size_t at) {
    unused_.push_back(order_[at]);
    order_.erase(order_.begin() + static_cast<std::ptrdiff_t>(at));
    floors_.erase(floors_.begin() + static_cast<std::ptrdiff_t>(at));
    return at > 0 ? at - 1 : 0;
  }

  // Keeps the number of levels bounded, and blocks full enough that walking along them stays short.
  void tidy() {
    if (size_ > LEVELS_MAX) replace(best_levels(LEVELS_MAX - LEVELS_MAX / 16));
    else if (floors_.size() > size_ / (BLOCK / 8) + 8) replace(best_levels(size_));
  }

  std::vector<Block> blocks_;
  std::vector<std::int64_t> floors_;  // worst price that belongs to a block, from the worst block to the best
  std::vector<std::uint32_t> order_;  // which block that is
  std::vector<std::uint32_t> unused_;
  std::size_t size_ = 0;
};

struct Book {
  Side<Which::bid> bids;
  Side<Which::ask> asks;

  bool has_both_sides() const { return !bids.empty() && !asks.empty(); }
  bool crossed() const { return has_both_sides() && bids.best().price >= asks.best().price; }
};

// Sum of price times quantity, at the sum of both exponents.
inline WideSum value_sum(const std::vector<Level>& levels) {
  WideSum sum;
  for (const auto& level : levels) sum.add(Int128{level.price} * level.qty);
  return sum;
}

}  // namespace sheetanchor
