// The levels of one side of a book around its best price: a row of quantities, one for each tick, and a bit for each
// that is not 0.
//
// A change is a subtraction, a multiplication and a store, wherever in the row it is. The row is only ever a place for
// levels that happen to be on its ticks and within its reach; its user keeps the others elsewhere.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include "blocks.hpp"

namespace sheetanchor {

// How much worse a price is than another one; as a number without a sign, in which better is very far.
template <Which which>
std::uint64_t distance(std::int64_t from, std::int64_t to) {
  const auto a = static_cast<std::uint64_t>(from), b = static_cast<std::uint64_t>(to);
  return which == Which::bid ? a - b : b - a;
}

// Where a row lies: place 0 is at `origin`, each further place one tick worse.
struct Grid {
  std::int64_t origin = 0, tick = 1;
  std::size_t length = 0;
};

template <Which which>
class TickRow {
 public:
  // At 256 KiB of quantities a side: at a tick of 0.01 it reaches 327.68 far, which nine changes in ten are within.
  static constexpr std::size_t LENGTH_MAX = 32768;
  static constexpr std::size_t LENGTH_MIN = 256;
  // One place in so many is kept free for prices that are better than the best one.
  static constexpr std::size_t AHEAD = 8;
  // The row is laid for so many of a side's levels, from the best on; the others are too far apart to be worth it.
  static constexpr std::size_t EIGHTHS = 7;
  // Every price within the row and every distance from its origin fits 64 bits.
  static constexpr std::int64_t REACH_MAX = std::int64_t{1} << 61;

  // What is needed to set levels, in registers.
  class Writer {
   public:
    // `LENGTH_MAX` or more for a price that has no place in the row.
    std::size_t place(std::int64_t price) const {
      return std::rotr(distance<which>(origin_, price) * inverse_, shift_);
    }
    bool has(std::size_t place) const { return place < length_; }
    void set(std::size_t place, std::int64_t qty) {
      auto& word = words_[place / 64];
      const auto nth = place % 64;
      const std::uint64_t is_level = qty != 0, was_level = word >> nth & 1;
      cells_[place] = qty;
      word = (word & ~(std::uint64_t{1} << nth)) | is_level << nth;
      size_ += is_level - was_level;
      nearest_ = std::min(nearest_, place);
    }

   private:
    friend class TickRow;
    explicit Writer(const TickRow& row)
        : origin_(row.grid_.origin), inverse_(row.inverse_), shift_(row.shift_), length_(row.grid_.length),
          cells_(row.cells_.get()), words_(row.words_.get()), size_(row.size_), nearest_(LENGTH_MAX) {}

    std::int64_t origin_;
    std::uint64_t inverse_;
    int shift_;
    std::size_t length_;
    std::int64_t* cells_;
    std::uint64_t* words_;
    std::size_t size_, nearest_;
  };

  bool is_laid() const { return grid_.length != 0; }
  const Grid& grid() const { return grid_; }
  bool empty() const { return size_ == 0; }
  std::size_t size() const { return size_; }

  Writer writer() const { return Writer(*this); }
  void take(const Writer& writer) {
    size_ = writer.size_;
    first_ = std::min(first_, writer.nearest_ / 64);
  }

  // Whether a row that lies there would be no better: nearly all that it has room for has room here.
  bool is_near(const Grid& other) const {
    if (other.tick != grid_.tick || other.length != grid_.length) return false;
    const auto tick = static_cast<std::uint64_t>(grid_.tick);
    return distance<which>(grid_.origin, other.origin) / tick < grid_.length / 4 ||
           distance<which>(other.origin, grid_.origin) / tick < grid_.length / (2 * AHEAD);
  }

  // Where a row for these levels, best first, would lie; its length is 0 when one would not be worth it.
  static Grid plan(const std::vector<Level>& levels) {
    if (levels.size() < LEVELS_MIN) return {};
    std::uint64_t tick = 0;
    for (std::size_t nth = 1; nth < TICK_LEVELS; ++nth)
      tick = std::gcd(tick, distance<which>(levels[nth - 1].price, levels[nth].price));
    const auto best = levels.front().price;
    const auto within = levels.size() * EIGHTHS / 8;
    const auto span = distance<which>(best, levels[within].price) / tick;
    const auto wanted = std::bit_ceil(std::clamp<std::uint64_t>(span + span / AHEAD, LENGTH_MIN, LENGTH_MAX));
    if (tick > static_cast<std::uint64_t>(REACH_MAX) / wanted) return {};
    const auto ahead = static_cast<std::int64_t>(wanted / AHEAD * tick);
    const Grid grid{which == Which::bid ? best + ahead : best - ahead, static_cast<std::int64_t>(tick),
                    static_cast<std::size_t>(wanted)};
    const bool is_worth_it = distance<which>(grid.origin, levels[LEVELS_MIN - 1].price) / tick < wanted;
    return is_worth_it ? grid : Grid{};
  }

  // Forgets all levels and lies there from now on; nowhere if the length is 0.
  void lay(const Grid& grid) {
    if (grid.length > room_) {
      cells_ = std::make_unique_for_overwrite<std::int64_t[]>(grid.length);
      words_ = std::make_unique_for_overwrite<std::uint64_t[]>(grid.length / 64);
      room_ = grid.length;
    }
    grid_ = grid;
    shift_ = std::countr_zero(static_cast<std::uint64_t>(grid.tick));
    inverse_ = inverse_of(static_cast<std::uint64_t>(grid.tick) >> shift_);
    std::fill_n(words_.get(), grid.length / 64, 0);
    size_ = 0;
    first_ = grid.length / 64;
  }

  // Only when there is a level.
  Level best() const {
    while (words_[first_] == 0) ++first_;
    return level(first_ * 64 + static_cast<std::size_t>(std::countr_zero(words_[first_])));
  }
  std::int64_t worst_price() const {
    auto at = grid_.length / 64 - 1;
    while (words_[at] == 0) --at;
    return level(at * 64 + 63 - static_cast<std::size_t>(std::countl_zero(words_[at]))).price;
  }

  // At most `depth` levels, best first.
  std::vector<Level> best_levels(std::size_t depth) const {
    std::vector<Level> out;
    out.reserve(std::min(depth, size_));
    for (auto at = first_; out.size() < std::min(depth, size_); ++at)
      for (auto word = words_[at]; word != 0 && out.size() < depth; word &= word - 1)
        out.push_back(level(at * 64 + static_cast<std::size_t>(std::countr_zero(word))));
    return out;
  }

 private:
  // Fewer levels are as quick without a row, be it that a side has no more or that no more are near enough.
  static constexpr std::size_t LEVELS_MIN = 64;
  // The tick is that of so many of the best levels: an odd price far out does not make it small.
  static constexpr std::size_t TICK_LEVELS = 64;

  Level level(std::size_t place) const {
    const auto away = static_cast<std::int64_t>(place) * grid_.tick;
    return {which == Which::bid ? grid_.origin - away : grid_.origin + away, cells_[place]};
  }

  // 1 / odd, modulo 2^64 (Newton: each step doubles the number of right bits, from three on).
  //
  // A distance times this is the quotient where it is a multiple of `odd`, and more than 2^64 / odd where it is not.
  // Rotating by the power of two in the tick divides by that too, and makes what is no multiple of it at least
  // 2^(64 - shift). Both are beyond any row, since tick times length is at most 2^61; so is what is better than the
  // origin (Warren, Hacker's Delight, "Test for Zero Remainder after Division by a Constant").
  static std::uint64_t inverse_of(std::uint64_t odd) {
    auto inverse = odd;
    for (int step = 0; step < 5; ++step) inverse *= 2 - odd * inverse;
    return inverse;
  }

  Grid grid_;
  std::uint64_t inverse_ = 1;
  int shift_ = 0;
  std::size_t room_ = 0;
  std::unique_ptr<std::int64_t[]> cells_;    // meaningful where the bit is set
  std::unique_ptr<std::uint64_t[]> words_;
  std::size_t size_ = 0;
  mutable std::size_t first_ = 0;  // no word before it has a bit
};

}  // namespace sheetanchor
