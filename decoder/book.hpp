// An order book: sorted arrays with the best level at the end, where most changes happen.
//
// Three changes in four remove a level or put one where there was none, often at the same price as a moment ago. So a
// removed level stays in its place with quantity 0, a gap: it comes back for nothing, and a new neighbour takes its place
// over by moving a few entries instead of hundreds. Where there is no gap, several are made at once. Prices ascend from
// worst to best, gaps included, but a gap may repeat the price of the level before it.
#pragma once

#include <algorithm>
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

enum class Which { bid, ask };

template <Which which>
class Side {
 public:
  // Sets each level to its new quantity; 0 removes it. The wire lists changes best first, so each search goes on from
  // the one before; in any other order it starts again at the best level.
  void apply(const std::vector<Level>& changes) {
    std::size_t end = prices_.size();
    const Level* before = nullptr;
    for (const auto& change : changes) {
      if (before != nullptr && !worse(change.price, before->price)) end = prices_.size();
      const auto at = locate(change.price, end);
      if (at < prices_.size() && prices_[at] == change.price) overwrite(at, change.qty);
      else if (change.qty != 0) insert(at, change);
      end = std::min(at, prices_.size());
      before = &change;
    }
  }

  bool empty() const { return prices_.empty(); }
  std::size_t size() const { return prices_.size() - gaps_; }
  Level best() const { return {prices_.back(), qtys_.back()}; }

  // At most `depth` levels, best first.
  std::vector<Level> best_levels(std::size_t depth) const {
    std::vector<Level> out;
    out.reserve(std::min(depth, size()));
    for (std::size_t at = prices_.size(); at-- > 0 && out.size() < depth;)
      if (qtys_[at] != 0) out.push_back({prices_[at], qtys_[at]});
    return out;
  }

  // Takes levels in any order; false when a price comes twice.
  bool replace(std::vector<Level> levels) {
    std::sort(levels.begin(), levels.end(), [](const Level& a, const Level& b) { return worse(a.price, b.price); });
    const auto twice = std::adjacent_find(levels.begin(), levels.end(),
                                          [](const Level& a, const Level& b) { return a.price == b.price; });
    if (twice != levels.end()) return false;
    assign(levels.begin(), levels.end());
    return true;
  }

  // Calls `visit(price, qty)` on every level, to be changed in place, until it answers false.
  template <class Visit>
  bool each(Visit visit) {
    close_gaps(size());
    for (std::size_t at = 0; at < prices_.size(); ++at)
      if (!visit(prices_[at], qtys_[at])) return false;
    return true;
  }

 private:
  // How far a new level looks for a gap: two cache lines of quantities instead of moving the whole tail.
  static constexpr std::size_t REACH = 10;
  static constexpr std::size_t BLOCK = 16;
  static constexpr std::size_t ROOM = 8;

  static bool worse(std::int64_t a, std::int64_t b) { return which == Which::bid ? a < b : a > b; }

  // The first place that is not worse than `price`, known to be at or before `end`. Neighbours are near, so blocks are
  // tried from there; in the block, and further out, counting and masks replace branches that could not be predicted.
  std::size_t locate(std::int64_t price, std::size_t end) const {
    const auto* prices = prices_.data();
    for (int block = 0; block < 32; ++block) {
      if (end <= BLOCK) return count_worse(0, end, price);
      if (worse(prices[end - BLOCK], price)) return count_worse(end - BLOCK, BLOCK, price);
      end -= BLOCK;
    }
    std::size_t from = 0;
    while (end > 0) {
      const std::size_t half = (end + 1) / 2;
      from += half & -static_cast<std::size_t>(worse(prices[from + half - 1], price));
      end -= half;
    }
    return from;
  }

  std::size_t count_worse(std::size_t from, std::size_t count, std::int64_t price) const {
    std::size_t found = from;
    for (std::size_t at = from; at < from + count; ++at) found += worse(prices_[at], price);
    return found;
  }

  void overwrite(std::size_t at, std::int64_t qty) {
    gaps_ += (qty == 0) - (qtys_[at] == 0);
    qtys_[at] = qty;
    if (qtys_.back() == 0) drop_outer_gaps();
    if (gaps_ > 2 * size() + 64) close_gaps(size());
  }

  // The best place is never a gap.
  void drop_outer_gaps() {
    while (!qtys_.empty() && qtys_.back() == 0) {
      prices_.pop_back();
      qtys_.pop_back();
      --gaps_;
    }
  }

  void insert(std::size_t at, const Level& level) {
    auto* prices = prices_.data();
    auto* qtys = qtys_.data();
    const auto up = std::min(prices_.size(), at + REACH);
    for (auto gap = at; gap < up; ++gap) {
      if (qtys[gap] != 0) continue;
      for (; gap > at; --gap) {
        prices[gap] = prices[gap - 1];
        qtys[gap] = qtys[gap - 1];
      }
      return fill(at, level);
    }
    const auto down = at > REACH ? at - REACH : 0;
    for (auto gap = at; gap-- > down;) {
      if (qtys[gap] != 0) continue;
      for (; gap + 1 < at; ++gap) {
        prices[gap] = prices[gap + 1];
        qtys[gap] = qtys[gap + 1];
      }
      return fill(at - 1, level);
    }
    // Room is made for more than one, since the next level often comes beside this one.
    prices_.insert(prices_.begin() + static_cast<std::ptrdiff_t>(at), ROOM, level.price);
    qtys_.insert(qtys_.begin() + static_cast<std::ptrdiff_t>(at), ROOM, 0);
    qtys_[at] = level.qty;
    gaps_ += ROOM - 1;
    if (qtys_.back() == 0) drop_outer_gaps();
    if (size() > LEVELS_MAX) close_gaps(LEVELS_MAX - LEVELS_MAX / 16);
  }

  void fill(std::size_t at, const Level& level) {
    prices_[at] = level.price;
    qtys_[at] = level.qty;
    --gaps_;
  }

  // Keeps the best `depth` levels, close together.
  void close_gaps(std::size_t depth) {
    if (gaps_ == 0 && depth == size()) return;
    const auto levels = best_levels(depth);
    assign(levels.rbegin(), levels.rend());
  }

  template <class Iterator>
  void assign(Iterator from, Iterator to) {
    prices_.clear();
    qtys_.clear();
    for (; from != to; ++from) {
      prices_.push_back(from->price);
      qtys_.push_back(from->qty);
    }
    gaps_ = 0;
  }

  // Apart from each other, since searching reads prices only. Worst first.
  std::vector<std::int64_t> prices_, qtys_;
  std::size_t gaps_ = 0;
};

struct Book {
  Side<Which::bid> bids;
  Side<Which::ask> asks;

  bool has_both_sides() const { return !bids.empty() && !asks.empty(); }
  bool crossed() const { return has_both_sides() && bids.best().price >= asks.best().price; }
};

// Sum of price times quantity, at the sum of both exponents.
inline Int128 value_sum(const std::vector<Level>& levels) {
  Int128 sum = 0;
  for (const auto& level : levels) sum += Int128{level.price} * level.qty;
  return sum;
}

}  // namespace sheetanchor
