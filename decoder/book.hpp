// An order book: each side a row of quantities around the best price, and blocks for the levels outside of it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "blocks.hpp"
#include "decimal.hpp"
#include "sbe.hpp"
#include "tick_row.hpp"

namespace sheetanchor {

// The exchange hands out 5,000 levels a side; diffs add levels further out until the market is known whole. At this
// bound the outermost sixteenth is forgotten at once, so that staying at the bound costs nothing per change.
inline constexpr std::size_t LEVELS_MAX = 32768;

// In place of the price of a side's last known level: all of them are known.
inline constexpr std::int64_t WHOLE = 0;

template <Which which>
class Side {
 public:
  // Sets each level to its new quantity; 0 removes it. `changes` is a vector of levels, or a group of a frame whose
  // levels have been checked.
  template <class Changes>
  void apply(const Changes& changes) {
    typename Blocks<which>::Cursor cursor;
    auto row = row_.writer();
    const std::size_t count = changes.size();
    std::size_t beyond = 0;
    for (std::size_t nth = 0; nth < count; ++nth) {
      const Level change = changes[nth];
      const auto place = row.place(change.price);
      if (row.has(place)) {
        row.set(place, change.qty);
      } else {
        blocks_.change(cursor, change);
        ++beyond;
      }
    }
    row_.take(row);
    if (size() > LEVELS_MAX) settle(best_levels(LEVELS_MAX - LEVELS_MAX / 16), row_.grid());
    if (beyond != 0) blocks_.tidy();
    changes_ += count;
    beyond_ += beyond;
    if (4 * changes_ >= patience_ * (size() + REVIEW_COST)) review();
  }

  bool empty() const { return size() == 0; }
  std::size_t size() const { return row_.size() + blocks_.size(); }

  // How many levels have been moved so far for the sake of order: what a test bounds by the number of changes.
  std::uint64_t moved() const { return moved_ + blocks_.moved(); }

  // Only of a side that is not empty.
  Level best() const {
    if (row_.empty()) return blocks_.best();
    const auto best = row_.best();
    return blocks_.empty() || worse<which>(blocks_.best().price, best.price) ? best : blocks_.best();
  }

  // Price of the last level, beyond which nothing is known if the side was cut off there; else WHOLE.
  std::int64_t edge(std::size_t cut_off) const {
    if (cut_off == 0 || size() < cut_off) return WHOLE;
    if (row_.empty()) return blocks_.worst_price();
    const auto worst = row_.worst_price();
    return blocks_.empty() || worse<which>(worst, blocks_.worst_price()) ? worst : blocks_.worst_price();
  }

  // How many of the best `depth` levels are at `edge` or better; `depth` if the side is known whole.
  std::size_t known_levels(std::size_t depth, std::int64_t edge) const {
    if (edge == WHOLE) return depth;
    const auto best = best_levels(depth);
    const auto is_known = [edge](const Level& level) { return !worse<which>(level.price, edge); };
    return static_cast<std::size_t>(std::count_if(best.begin(), best.end(), is_known));
  }

  // At most `depth` levels, best first.
  std::vector<Level> best_levels(std::size_t depth) const {
    auto near = row_.best_levels(depth);
    if (blocks_.empty()) return near;
    if (near.size() == depth && depth != 0 && worse<which>(blocks_.best().price, near.back().price)) return near;
    const auto far = blocks_.best_levels(depth);
    std::vector<Level> out(near.size() + far.size());
    std::merge(near.begin(), near.end(), far.begin(), far.end(), out.begin(), is_better);
    if (out.size() > depth) out.resize(depth);
    return out;
  }

  // Takes levels in any order; false when a price comes twice.
  bool replace(std::vector<Level> levels) {
    if (!std::is_sorted(levels.begin(), levels.end(), is_better)) std::sort(levels.begin(), levels.end(), is_better);
    const auto twice = std::adjacent_find(levels.begin(), levels.end(),
                                          [](const Level& a, const Level& b) { return a.price == b.price; });
    if (twice != levels.end()) return false;
    settle(levels, {});
    changes_ = beyond_ = 0;
    patience_ = PATIENCE_AT_FIRST;
    return true;
  }

  // Calls `visit(price, qty)` on every level, to be changed in a way that keeps their order; false when it is. Only
  // then is anything changed.
  template <class Visit>
  bool each(Visit visit) {
    const auto before = best_levels(size());
    auto levels = before;
    for (auto& level : levels)
      if (!visit(level.price, level.qty)) return false;
    if (levels != before) replace(std::move(levels));
    return true;
  }

 private:
  // A review costs about as much as a change of each level and so many more. It waits for as many changes, so that what
  // it costs is in proportion to what was changed, whatever the market does.
  static constexpr std::size_t REVIEW_COST = 512;
  // By quarters of that cost. The first review is soon, as there is no row yet.
  static constexpr std::size_t PATIENCE_AT_FIRST = 1, PATIENCE = 4, PATIENCE_MAX = 64;

  static bool is_better(const Level& a, const Level& b) { return worse<which>(b.price, a.price); }

  // When many changes miss the row, lays it anew where a row would be laid now; where that is nowhere else, the next
  // review is put off for longer and longer.
  void review() {
    const bool misses = beyond_ * 4 > changes_;
    changes_ = beyond_ = 0;
    const bool is_first = patience_ == PATIENCE_AT_FIRST;
    if (!misses) {
      patience_ = PATIENCE;
      return;
    }
    const auto levels = best_levels(size());
    moved_ += levels.size();
    const auto grid = TickRow<which>::plan(levels);
    const bool stays = grid.length == 0 ? !row_.is_laid() : row_.is_near(grid);
    patience_ = stays && !is_first ? std::min(2 * patience_, PATIENCE_MAX) : PATIENCE;
    if (!stays) settle(levels, grid);
  }

  // Puts levels, best first, where they belong with a row there.
  void settle(const std::vector<Level>& levels, Grid grid) {
    row_.lay(grid);
    auto row = row_.writer();
    std::vector<Level> others;
    for (const auto& level : levels) {
      const auto place = row.place(level.price);
      if (row.has(place)) row.set(place, level.qty);
      else others.push_back(level);
    }
    row_.take(row);
    blocks_.replace(others);
    moved_ += levels.size();
  }

  TickRow<which> row_;
  Blocks<which> blocks_;  // no level that has a place in the row
  std::size_t changes_ = 0, beyond_ = 0;  // since the last review
  std::size_t patience_ = PATIENCE_AT_FIRST;
  std::uint64_t moved_ = 0;
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
