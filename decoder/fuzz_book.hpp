// A side of a book and a simple reference, given the same changes and compared after each, for `fuzz.cpp` and tests.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

#include "book.hpp"
#include "scale.hpp"
#include "sbe.hpp"

namespace sheetanchor::fuzz {

inline void require(bool holds) {
  if (!holds) std::abort();
}

// Reads numbers off the input; past its end everything is 0.
class Cursor {
 public:
  explicit Cursor(sbe::Bytes bytes) : bytes_(bytes) {}
  bool done() const { return at_ >= bytes_.size(); }
  template <class T>
  T take() {
    T value{};
    const auto left = bytes_.size() - at_;
    const auto count = left < sizeof value ? left : sizeof value;
    if (count != 0) std::memcpy(&value, bytes_.data() + at_, count);
    at_ += count;
    return value;
  }
  sbe::Bytes slice(std::size_t count) {
    const auto left = bytes_.size() - at_;
    const auto out = bytes_.subspan(at_, count < left ? count : left);
    at_ += out.size();
    return out;
  }

 private:
  sbe::Bytes bytes_;
  std::size_t at_ = 0;
};

// A side as one would write it first: what the fast one has to equal after every step.
template <Which which>
class PlainSide {
 public:
  void apply(const std::vector<Level>& changes) {
    for (const auto& change : changes) {
      if (change.qty == 0) levels_.erase(change.price);
      else levels_[change.price] = change.qty;
    }
    if (levels_.size() <= LEVELS_MAX) return;
    auto kept = best_levels(LEVELS_MAX - LEVELS_MAX / 16);
    levels_.clear();
    for (const auto& level : kept) levels_[level.price] = level.qty;
  }
  std::vector<Level> best_levels(std::size_t depth) const {
    std::vector<Level> out;
    for (auto level = levels_.begin(); level != levels_.end() && out.size() < depth; ++level)
      out.push_back({level->first, level->second});
    return out;
  }
  std::size_t size() const { return levels_.size(); }

 private:
  struct Better {
    bool operator()(std::int64_t a, std::int64_t b) const { return worse<which>(b, a); }
  };
  std::map<std::int64_t, std::int64_t, Better> levels_;
};

// Both kinds of side, and whether they are the same.
template <Which which>
class TwoSides {
 public:
  void apply(const std::vector<Level>& changes) {
    fast_.apply(changes);
    plain_.apply(changes);
    changed_ += changes.size();
  }

  // Takes levels best first.
  void load(const std::vector<Level>& levels) {
    require(fast_.replace({levels.rbegin(), levels.rend()}));
    start_plain(levels);
    if (levels.empty()) return;
    auto twice = levels;
    twice.push_back(levels.front());
    require(!fast_.replace(twice));
  }

  // Multiplies prices, or changes nothing when one becomes too large.
  void rescale(std::int64_t factor) {
    auto levels = best_levels(size());
    std::size_t nth = 0;
    const bool fits = fast_.each([&](std::int64_t& price, std::int64_t& qty) {
      require(levels[nth] == Level{price, qty});
      ++nth;
      return times(price, factor, PRICE_MAX);
    });
    if (!fits) return;
    for (auto& level : levels) level.price *= factor;
    start_plain(levels);
  }

  std::size_t size() const { return plain_.size(); }
  std::vector<Level> best_levels(std::size_t depth) const { return plain_.best_levels(depth); }
  std::uint64_t moved() const { return fast_.moved(); }
  std::uint64_t changed() const { return changed_; }

  void compare() const {
    const auto all = best_levels(size());
    require(fast_.size() == all.size() && fast_.empty() == all.empty());
    require(fast_.best_levels(all.size()) == all && fast_.best_levels(10) == best_levels(10));
    if (!all.empty()) require(fast_.best() == all.front() && fast_.edge(1) == all.back().price);
    // Keeping order costs a bounded number of moves a change, however the market moves.
    require(moved() <= 8 * loaded_ + MOVES_PER_CHANGE_MAX * changed_ + MOVES_MIN);
  }

  // Forgetting the outermost levels of a full side is most of it; the moves of other markets are a sixth of this.
  static constexpr std::uint64_t MOVES_PER_CHANGE_MAX = 48, MOVES_MIN = 8192;

 private:
  void start_plain(const std::vector<Level>& levels) {
    plain_ = {};
    plain_.apply(levels);
    loaded_ += levels.size();
  }

  Side<which> fast_;
  PlainSide<which> plain_;
  std::uint64_t changed_ = 0, loaded_ = 0;
};

// Markets of every tick, near and far, dense and sparse, that jump, empty a side and come back.
template <Which which>
class BookScript {
 public:
  explicit BookScript(Cursor in) : in_(in) {
    constexpr std::int64_t TICKS[] = {1, 1, 10, 1'000'000, 3, 7 << 20, std::int64_t{1} << 40, std::int64_t{1} << 54};
    tick_ = TICKS[in_.take<std::uint8_t>() % std::size(TICKS)];
    centre_ = tick_ * (1 + in_.take<std::uint32_t>() % std::min<std::int64_t>(2'000'000, PRICE_MAX / tick_));
  }

  void run() {
    for (std::uint64_t work = 0; work < WORK_MAX && !in_.done(); work += sides_.size()) {
      const auto before = sides_.changed();
      step();
      sides_.compare();
      work += sides_.changed() - before;
    }
  }

 private:
  // Levels changed and compared in one script: below a second, with sanitizers and on a busy machine.
  static constexpr std::uint64_t WORK_MAX = 1'000'000;

  void step() {
    changes_.clear();
    const auto op = in_.take<std::uint8_t>();
    switch (op % 8) {
      case 0:
      case 1:  // scattered around the best price, in no order
        for (int count = in_.take<std::uint8_t>() % 64; count-- > 0;)
          change(in_.take<std::int16_t>() >> (op >> 4), qty());
        break;
      case 2: {  // a run of levels, in the wire's order
        const auto count = in_.take<std::uint8_t>() << (op >> 4) % 8, stride = 1 + in_.take<std::uint8_t>() % 32;
        for (int nth = 0; nth < count; ++nth) change(nth * stride, 1 + nth);
        break;
      }
      case 3:  // the market moves; nothing changes yet
        move(in_.take<std::int16_t>() << (op >> 4));
        break;
      case 4: {  // the best levels go
        const auto count = static_cast<std::size_t>(in_.take<std::uint8_t>()) << (op >> 4);
        for (const auto& level : sides_.best_levels(count)) changes_.push_back({level.price, 0});
        break;
      }
      case 5:  // off the tick, and anywhere
        for (int count = op >> 4; count-- > 0;) put(in_.take<std::int64_t>() & (PRICE_MAX - 1), qty());
        break;
      case 6:
        load(op >> 4);
        return;
      default:
        sides_.rescale(1 + (op >> 4));
        return;
    }
    sides_.apply(changes_);
  }

  void change(std::int64_t places, std::int64_t qty) {
    const auto worse_by = which == Which::bid ? -places : places;
    std::int64_t away = 0, price = 0;
    if (!__builtin_mul_overflow(worse_by, tick_, &away) && !__builtin_add_overflow(centre_, away, &price))
      put(price, qty);
  }
  void put(std::int64_t price, std::int64_t qty) {
    if (price > 0 && price <= PRICE_MAX) changes_.push_back({price, qty});
  }
  std::int64_t qty() {
    const auto byte = in_.take<std::uint8_t>();
    return byte < 128 ? 0 : byte == 255 ? INT64_MAX : byte;
  }
  void move(std::int64_t places) {
    std::int64_t away = 0;
    if (__builtin_mul_overflow(places, tick_, &away) || away > PRICE_MAX || away < -PRICE_MAX) return;
    if (centre_ + away > 0 && centre_ + away <= PRICE_MAX) centre_ += away;
  }

  // The same levels, all or some of them, as from a snapshot.
  void load(int keep_one_in) {
    std::vector<Level> kept;
    std::size_t nth = 0;
    for (const auto& level : sides_.best_levels(sides_.size()))
      if (keep_one_in < 2 || nth++ % static_cast<std::size_t>(keep_one_in) == 0) kept.push_back(level);
    sides_.load(kept);
  }

  Cursor in_;
  std::int64_t tick_ = 1, centre_ = 1;
  std::vector<Level> changes_;
  TwoSides<which> sides_;
};

}  // namespace sheetanchor::fuzz
