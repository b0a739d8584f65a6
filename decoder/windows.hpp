// The recent past: trades by id and the mid price over time, and the statistics of a window that ends at a given time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "decimal.hpp"
#include "feed_clock.hpp"

namespace sheetanchor {

// A queue in one piece of memory: grows at the end, is forgotten from the front.
template <class T>
class Tail {
 public:
  bool empty() const { return head_ == items_.size(); }
  std::size_t size() const { return items_.size() - head_; }
  T& operator[](std::size_t at) { return items_[head_ + at]; }
  const T& operator[](std::size_t at) const { return items_[head_ + at]; }
  const T& front() const { return items_[head_]; }
  T& back() { return items_.back(); }
  const T& back() const { return items_.back(); }
  auto begin() const { return items_.begin() + static_cast<std::ptrdiff_t>(head_); }
  auto end() const { return items_.end(); }
  auto begin() { return items_.begin() + static_cast<std::ptrdiff_t>(head_); }
  auto end() { return items_.end(); }

  void push(const T& item) {
    if (items_.capacity() == 0) items_.reserve(FIRST_ROOM);
    items_.push_back(item);
  }
  // Takes everything from a place on out, and hands it over.
  std::vector<T> cut(std::size_t at) {
    const auto from = items_.begin() + static_cast<std::ptrdiff_t>(head_ + at);
    std::vector<T> taken(from, items_.end());
    items_.erase(from, items_.end());
    return taken;
  }
  void drop_front(std::size_t count) {
    head_ += count;
    if (head_ > 1024 && head_ > items_.size() / 2) {
      items_.erase(items_.begin(), items_.begin() + static_cast<std::ptrdiff_t>(head_));
      head_ = 0;
    }
  }
  void clear() {
    items_.clear();
    head_ = 0;
  }

 private:
  // Most markets never need more, so none grows and moves while the market is followed. What is not used of it is no
  // memory yet.
  static constexpr std::size_t FIRST_ROOM = 4096;

  std::vector<T> items_;
  std::size_t head_ = 0;
};

// A time dated by a clock that was set from one reading to another, if it is nearer to the old one.
inline std::int64_t moved(std::int64_t time_us, std::int64_t from_us, std::int64_t to_us) {
  return std::abs(time_us - to_us) > std::abs(time_us - from_us) ? time_us + to_us - from_us : time_us;
}

struct PastTrade {
  std::int64_t id;
  std::int64_t price;
  std::int64_t qty;
  std::int64_t time_us;  // when it happened (transactTime), not when it was sent
  bool is_buyer_maker;
  // Of all trades up to this one the latest time, as far as it can be believed: nothing before it is later.
  std::int64_t reach_us = 0;
};

// Long enough to compare a whole minute's volume with the one before it.
inline constexpr std::int64_t TRADE_HISTORY_US = 120'000'000;
inline constexpr std::size_t TRADES_KEPT_MAX = std::size_t{1} << 18;
// Trades that came late are put in their places at a read, or when so many wait: moving all behind the place
// of each at once would let a few frames of them hold everything up for seconds.
inline constexpr std::size_t LATE_TRADES_MAX = 4096;
// A trade may be this much ahead of the end of a window and belong to it: streams are not in step to the millisecond.
inline constexpr std::int64_t AHEAD_US = FeedClock::SLACK_US;
// A trade that is further ahead than this holds up the search for the beginning of a window no longer than this.
inline constexpr std::int64_t REACH_AHEAD_US = 10'000'000;

// Trades in the order of their ids, each once.
class TradeHistory {
 public:
  const Tail<PastTrade>& trades() const {
    settle();
    return trades_;
  }

  bool holds(std::int64_t id) const {
    settle();
    const auto at = position(id);
    return at < trades_.size() && trades_[at].id == id;
  }

  void append(PastTrade trade, std::int64_t event_us) {
    place(trade, event_us);
    forget(event_us);
  }

  // A trade at or below the newest id; false when it is known or too old to matter.
  bool insert(PastTrade trade, std::int64_t event_us) {
    if (trade.id <= forgotten_id_ || trade.time_us < event_us - TRADE_HISTORY_US) return false;
    const auto at = position(trade.id);
    if (at < trades_.size() && trades_[at].id == trade.id) return false;
    trade.reach_us = std::min(trade.time_us, event_us + REACH_AHEAD_US);
    if (!late_.emplace(trade.id, trade).second) return false;
    if (late_.size() >= LATE_TRADES_MAX) settle();
    forget(event_us);
    return true;
  }

  // Calls `visit(trade)` on every trade, to be changed in place, its id left alone.
  template <class Visit>
  bool each(Visit visit) {
    settle();
    return std::all_of(trades_.begin(), trades_.end(), visit);
  }

  // The exchange's clock was set: trades up to an id are dated by its old reading and move along.
  void set_clock(std::int64_t last_id, std::int64_t by_us, std::int64_t now_us) {
    settle();
    std::int64_t reach_us = 0;
    for (auto& trade : trades_) {
      if (trade.id <= last_id) trade.time_us += by_us;
      reach_us = trade.reach_us = std::max(reach_us, std::min(trade.time_us, now_us + REACH_AHEAD_US));
    }
  }

  void clear() {
    trades_.clear();
    late_.clear();
    forgotten_id_ = -1;
  }

 private:
  void place(PastTrade& trade, std::int64_t event_us) {
    trade.reach_us = event_us < 0 ? trade.time_us : std::min(trade.time_us, event_us + REACH_AHEAD_US);
    if (!trades_.empty()) trade.reach_us = std::max(trade.reach_us, trades_.back().reach_us);
    trades_.push(trade);
  }

  // Puts the late ones in their places.
  void settle() const {
    if (late_.empty()) return;
    late_.erase(late_.begin(), late_.upper_bound(forgotten_id_));
    if (late_.empty()) return;
    const auto later = trades_.cut(position(late_.begin()->first));
    std::int64_t reach_us = trades_.empty() ? 0 : trades_.back().reach_us;
    const auto put = [this, &reach_us](PastTrade trade) {
      reach_us = trade.reach_us = std::max(reach_us, trade.reach_us);
      trades_.push(trade);
    };
    auto next = late_.begin();
    for (const auto& trade : later) {
      for (; next != late_.end() && next->first < trade.id; ++next) put(next->second);
      put(trade);
    }
    for (; next != late_.end(); ++next) put(next->second);
    late_.clear();
  }

  // Where no id is missing, which is nearly always, the place of an id is a subtraction.
  std::size_t position(std::int64_t id) const {
    if (trades_.empty() || id > trades_.back().id) return trades_.size();
    if (id < trades_.front().id) return 0;
    const auto offset = static_cast<std::size_t>(id - trades_.front().id);
    if (offset < trades_.size() && trades_[offset].id == id) return offset;
    const auto found = std::lower_bound(trades_.begin(), trades_.end(), id,
                                        [](const PastTrade& trade, std::int64_t wanted) { return trade.id < wanted; });
    return static_cast<std::size_t>(found - trades_.begin());
  }

  void forget(std::int64_t event_us) {
    std::size_t old = trades_.size() > TRADES_KEPT_MAX ? trades_.size() - TRADES_KEPT_MAX : 0;
    while (old < trades_.size() && trades_[old].reach_us < event_us - TRADE_HISTORY_US) ++old;
    if (old == 0) return;
    forgotten_id_ = trades_[old - 1].id;
    trades_.drop_front(old);
  }

  mutable Tail<PastTrade> trades_;
  mutable std::map<std::int64_t, PastTrade> late_;
  std::int64_t forgotten_id_ = -1;
};

struct WindowStats {
  std::int64_t count = 0;
  Int128 volume = 0;         // at the quantity exponent
  Int128 signed_volume = 0;  // bought minus sold
  WideSum notional;          // at the sum of both exponents
  double interarrival_mean_s = 0;
  double interarrival_var_s2 = 0;  // population variance
  std::int64_t last_time_us = 0;
};

// Trades with `end_us - time <= window_us`, in whatever order they happened; not those that happen only later.
inline WindowStats window_stats(const Tail<PastTrade>& trades, std::int64_t end_us, std::int64_t window_us) {
  WindowStats stats;
  Int128 gap_squares = 0;
  std::int64_t earliest_us = 0;
  bool in_order = true;
  const auto belongs = [end_us, window_us](const PastTrade& trade) {
    return end_us - trade.time_us <= window_us && trade.time_us - end_us <= AHEAD_US;
  };
  std::size_t at = trades.size();
  for (; at > 0 && end_us - trades[at - 1].reach_us <= window_us; --at) {
    const auto& trade = trades[at - 1];
    if (!belongs(trade)) continue;
    if (stats.count == 0) {
      stats.last_time_us = trade.time_us;
    } else {
      const Int128 gap = earliest_us - trade.time_us;
      in_order = in_order && gap >= 0;
      gap_squares += gap * gap;
    }
    earliest_us = trade.time_us;
    ++stats.count;
    stats.volume += trade.qty;
    stats.signed_volume += trade.is_buyer_maker ? -trade.qty : trade.qty;
    stats.notional.add(Int128{trade.price} * trade.qty);
  }
  if (!in_order) {
    std::vector<std::int64_t> times;
    for (; at < trades.size(); ++at)
      if (belongs(trades[at])) times.push_back(trades[at].time_us);
    std::sort(times.begin(), times.end());
    earliest_us = times.front();
    stats.last_time_us = times.back();
    gap_squares = 0;
    for (std::size_t next = 1; next < times.size(); ++next) {
      const Int128 gap = times[next] - times[next - 1];
      gap_squares += gap * gap;
    }
  }
  if (stats.count < 2) return stats;
  // The gaps add up to the span, so mean and variance need no second pass and no floating sum.
  const Int128 gaps = stats.count - 1;
  const Int128 span = stats.last_time_us - earliest_us;
  const auto gap_count = static_cast<double>(gaps);
  stats.interarrival_mean_s = static_cast<double>(span) / gap_count / 1e6;
  stats.interarrival_var_s2 = static_cast<double>(gap_squares * gaps - span * span) / (gap_count * gap_count) / 1e12;
  return stats;
}

// The longest return looks back this far.
inline constexpr std::int64_t MID_HISTORY_US = 5'000'000;
inline constexpr std::size_t MIDS_KEPT_MAX = std::size_t{1} << 16;

struct Mid {
  std::int64_t time_us;
  std::int64_t sum;  // best bid plus best ask; both are at most 2^61
};

// What bid plus ask was at any time of the last five seconds.
class MidHistory {
 public:
  Tail<Mid>& mids() { return mids_; }

  bool is_newer(std::int64_t time_us) const { return mids_.empty() || time_us > mids_.back().time_us; }

  // The exchange's clock was set: all mids are dated by its old reading and move along.
  void set_clock(std::int64_t by_us) {
    for (auto& mid : mids_) mid.time_us += by_us;
  }

  // Times never go back: streams of one exchange overtake each other by a few milliseconds.
  void note(std::int64_t time_us, std::int64_t sum, std::int64_t event_us) {
    if (!mids_.empty()) {
      auto& last = mids_.back();
      if (last.sum == sum) return;
      if (time_us <= last.time_us) {
        last.sum = sum;
        return;
      }
    }
    mids_.push({time_us, sum});
    std::size_t old = mids_.size() > MIDS_KEPT_MAX ? mids_.size() - MIDS_KEPT_MAX : 0;
    while (old + 1 < mids_.size() && mids_[old + 1].time_us <= event_us - MID_HISTORY_US) ++old;
    if (old != 0) mids_.drop_front(old);
  }

  std::optional<std::int64_t> sum_at(std::int64_t time_us) const {
    const auto after = std::upper_bound(mids_.begin(), mids_.end(), time_us,
                                        [](std::int64_t wanted, const Mid& mid) { return wanted < mid.time_us; });
    if (after == mids_.begin()) return std::nullopt;
    return (after - 1)->sum;
  }

  void clear() { mids_.clear(); }

 private:
  Tail<Mid> mids_;
};

}  // namespace sheetanchor
