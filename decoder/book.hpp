// An order book: two sorted vectors with the best level at the end, where nearly all changes happen.
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
  void set(const Level& change) {
    const auto found = locate(change.price);
    if (found != levels_.end() && found->price == change.price) {
      if (change.qty != 0) found->qty = change.qty;
      else levels_.erase(found);
    } else if (change.qty != 0) {
      levels_.insert(found, change);
      if (levels_.size() > LEVELS_MAX) levels_.erase(levels_.begin(), levels_.begin() + LEVELS_MAX / 16);
    }
  }

  bool empty() const { return levels_.empty(); }
  std::size_t size() const { return levels_.size(); }
  const Level& best() const { return levels_.back(); }
  // Rank 0 is the best level.
  const Level& at(std::size_t rank) const { return levels_[levels_.size() - 1 - rank]; }

  // Takes levels in any order; false when a price comes twice.
  bool replace(std::vector<Level> levels) {
    std::sort(levels.begin(), levels.end(), [](const Level& a, const Level& b) { return worse(a.price, b.price); });
    const auto twice = std::adjacent_find(levels.begin(), levels.end(),
                                          [](const Level& a, const Level& b) { return a.price == b.price; });
    if (twice != levels.end()) return false;
    levels_ = std::move(levels);
    return true;
  }

  std::vector<Level>& raw() { return levels_; }

 private:
  // Most changes are within this many levels of the best one; looking there first saves the binary search.
  static constexpr std::ptrdiff_t NEAR = 8;

  static bool worse(std::int64_t a, std::int64_t b) { return which == Which::bid ? a < b : a > b; }

  // The first level that is not worse than `price`.
  std::vector<Level>::iterator locate(std::int64_t price) {
    auto at = levels_.end();
    const auto stop = levels_.size() > NEAR ? at - NEAR : levels_.begin();
    while (at != stop && !worse((at - 1)->price, price)) --at;
    if (at != stop) return at;
    return std::lower_bound(levels_.begin(), stop, price,
                            [](const Level& level, std::int64_t wanted) { return worse(level.price, wanted); });
  }

  std::vector<Level> levels_;
};

struct Book {
  Side<Which::bid> bids;
  Side<Which::ask> asks;

  bool has_both_sides() const { return !bids.empty() && !asks.empty(); }
  bool crossed() const { return has_both_sides() && bids.best().price >= asks.best().price; }
};

// Sum of price times quantity over the best `depth` levels, at the sum of both exponents.
template <class AnySide>
Int128 value_sum(const AnySide& side, std::size_t depth) {
  Int128 sum = 0;
  for (std::size_t rank = 0; rank < std::min(depth, side.size()); ++rank)
    sum += Int128{side.at(rank).price} * side.at(rank).qty;
  return sum;
}

}  // namespace sheetanchor
