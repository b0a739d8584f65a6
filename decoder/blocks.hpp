// Levels of one side of a book in small blocks: the blocks are sorted, the levels within a block are not.
//
// Three changes in four remove a level or put one where there was none, so keeping levels sorted would mean moving them
// all the time. Here a change finds its block by walking on from the change before, and its place in the block by
// comparing with every price there, without a branch that could be mispredicted. Order is made on reading.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "sbe.hpp"

namespace sheetanchor {

using sbe::Level;

enum class Which { bid, ask };

template <Which which>
bool worse(std::int64_t a, std::int64_t b) {
  return which == Which::bid ? a < b : a > b;
}

template <Which which>
class Blocks {
 public:
  // Where the search for the next change goes on.
  struct Cursor {
    std::size_t at = 0;
    std::int64_t before = which == Which::bid ? INT64_MIN : INT64_MAX;
  };

  Blocks() { replace({}); }

  bool empty() const { return size_ == 0; }
  std::size_t size() const { return size_; }

  // How many levels have been moved for the sake of order since the side was made.
  std::uint64_t moved() const { return moved_; }

  // Sets a level to its new quantity; 0 removes it. In a list of changes, best first as the wire has them, each search
  // goes on from the one before; in any other order it starts again at the best level.
  void change(Cursor& cursor, const Level& level) {
    auto at = worse<which>(level.price, cursor.before) ? cursor.at : floors_.size() - 1;
    cursor.before = level.price;
    at = find(at, level.price);
    if (block(at).count == BLOCK) at += split(at, level.price);
    best_is_known_ = best_is_known_ && at + 1 < floors_.size();
    set(block(at), level);
    if (block(at).count == 0 && floors_.size() > 1) at = drop(at);
    cursor.at = at;
  }

  // Keeps blocks full enough that there are few of them.
  void tidy() {
    if (floors_.size() > size_ / (BLOCK / 8) + 8) replace(best_levels(size_));
  }

  // Only when there is a level.
  const Level& best() const {
    if (best_is_known_) return best_;
    const auto& last = blocks_[order_.back()];
    std::size_t found = 0;
    for (std::size_t at = 1; at < last.count; ++at)
      if (worse<which>(last.prices[found], last.prices[at])) found = at;
    best_ = {last.prices[found], last.qtys[found]};
    best_is_known_ = true;
    return best_;
  }

  // Price of the last level. Only when there is one.
  std::int64_t worst_price() const {
    const auto& first = blocks_[order_.front()];
    const auto end = first.prices + first.count;
    return which == Which::bid ? *std::min_element(first.prices, end) : *std::max_element(first.prices, end);
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
                [](const Level& a, const Level& b) { return worse<which>(b.price, a.price); });
    }
    if (out.size() > depth) out.resize(depth);
    return out;
  }

  // Takes levels best first, each price once.
  void replace(const std::vector<Level>& levels) {
    blocks_.assign(levels.size() / (BLOCK / 2) + 1, Block{});
    floors_.assign(blocks_.size(), 0);
    order_.resize(blocks_.size());
    unused_.clear();
    moved_ += levels.size();
    best_is_known_ = false;
    size_ = 0;
    for (std::size_t at = 0; at < blocks_.size(); ++at) order_[at] = static_cast<std::uint32_t>(at);
    for (auto level = levels.rbegin(); level != levels.rend(); ++level) {
      const auto at = size_ / (BLOCK / 2);
      if (block(at).count == 0) floors_[at] = level->price;
      set(block(at), *level);
    }
    if (blocks_.back().count == 0 && floors_.size() > 1) drop(floors_.size() - 1);
  }

 private:
  // Two cache lines of prices: comparing with all of them costs less than one mispredicted branch.
  static constexpr std::size_t BLOCK = 16;
  // So many blocks are passed one by one before the search halves what is left: a list in no order stays cheap.
  static constexpr std::size_t STEPS = 16;

  struct Block {
    std::uint32_t count = 0;
    std::int64_t prices[BLOCK]{};
    std::int64_t qtys[BLOCK]{};
  };

  Block& block(std::size_t at) { return blocks_[order_[at]]; }

  // The block of a price that is at `at` or before it.
  std::size_t find(std::size_t at, std::int64_t price) const {
    const auto until = at > STEPS ? at - STEPS : 0;
    while (at > until && worse<which>(price, floors_[at])) --at;
    if (at == 0 || at > until || !worse<which>(price, floors_[at])) return at;
    const auto first = floors_.begin();
    const auto after = std::upper_bound(first + 1, first + static_cast<std::ptrdiff_t>(at), price, worse<which>);
    return static_cast<std::size_t>(after - first) - 1;
  }

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
    std::sort(levels.begin(), levels.end(),
              [](const Level& a, const Level& b) { return worse<which>(a.price, b.price); });
    for (std::size_t nth = 0; nth < BLOCK; ++nth) {
      auto& to = nth < BLOCK / 2 ? old : fresh;
      to.prices[nth % (BLOCK / 2)] = levels[nth].price;
      to.qtys[nth % (BLOCK / 2)] = levels[nth].qty;
    }
    std::fill(old.prices + BLOCK / 2, old.prices + BLOCK, 0);
    std::fill(fresh.prices + BLOCK / 2, fresh.prices + BLOCK, 0);
    old.count = fresh.count = BLOCK / 2;
    moved_ += BLOCK;
    const auto behind = static_cast<std::ptrdiff_t>(at) + 1;
    floors_.insert(floors_.begin() + behind, levels[BLOCK / 2].price);
    order_.insert(order_.begin() + behind, id);
    return worse<which>(price, floors_[at + 1]) ? 0 : 1;
  }

  // Takes an empty block out; what was its range becomes the one below's. Answers where to go on.
  std::size_t drop(std::size_t at) {
    best_is_known_ = false;
    unused_.push_back(order_[at]);
    order_.erase(order_.begin() + static_cast<std::ptrdiff_t>(at));
    floors_.erase(floors_.begin() + static_cast<std::ptrdiff_t>(at));
    return at > 0 ? at - 1 : 0;
  }

  std::vector<Block> blocks_;
  std::vector<std::int64_t> floors_;  // worst price that belongs to a block, from the worst block to the best
  std::vector<std::uint32_t> order_;  // which block that is
  std::vector<std::uint32_t> unused_;
  std::size_t size_ = 0;
  std::uint64_t moved_ = 0;
  mutable Level best_{};
  mutable bool best_is_known_ = false;
};

}  // namespace sheetanchor
