// The recent past: trades by id and the mid price over time, and the statistics of a window that ends at a given time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "decimal.hpp"

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

  void push(const T& item) { items_.push_back(item); }
  void insert(std::size_t at, const T& item) {
    items_.insert(items_.begin() + static_cast<std::ptrdiff_t>(head_ + at), item);
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
  std::vector<T> items_;
  std::size_t head_ = 0;
};

struct PastTrade {
  std::int64_t id;
  std::int64_t price;
  std::int64_t qty;
  std::int64_t time_us;  // when it happened (transactTime), not when it was sent
  bool is_buyer_maker;
};

// Long enough to compare a whole minute's volume with the one before it.
inline constexpr std::int64_t TRADE_HISTORY_US = 120'000'000;
inline constexpr std::size_t TRADES_KEPT_MAX = std::size_t{1} << 18;

// Trades in the order of their ids, each once.
class TradeHistory {
 public:
  const Tail<PastTrade>& trades() const { return trades_; }
  Tail<PastTrade>& trades() { return trades_; }

  void append(const PastTrade& trade, std::int64_t event_us) {
    trades_.push(trade);
    forget(event_us);
  }

  // A trade at or below the newest id; false when it is known or too old to matter.
  bool insert(const PastTrade& trade, std::int64_t event_us) {
    if (trade.id <= forgotten_id_ || trade.time_us < event_us - TRADE_HISTORY_US) return false;
    const auto at = position(trade.id);
    if (at < trades_.size() && trades_[at].id == trade.id) return false;
    trades_.insert(at, trade);
    forget(event_us);
    return true;
  }

  void clear() {
    trades_.clear();
    forgotten_id_ = -1;
  }

 private:
  // Without a hole in the ids, which is nearly always, the place of an id is a subtraction.
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
    while (old < trades_.size() && trades_[old].time_us < event_us - TRADE_HISTORY_US) ++old;
    if (old == 0) return;
    forgotten_id_ = trades_[old - 1].id;
    trades_.drop_front(old);
  }

  Tail<PastTrade> trades_;
  std::int64_t forgotten_id_ = -1;
};

struct WindowStats {
  std::int64_t count = 0;
  Int128 volume = 0;         // at the quantity exponent
  Int128 signed_volume = 0;  // bought minus sold
  Int128 notional = 0;       // at the sum of both exponents
  double interarrival_mean_s = 0;
  double interarrival_var_s2 = 0;  // population variance
  std::int64_t last_time_us = 0;
};

// Trades with `end_us - time <= window_us`: the newest ones, back to the first that is older.
inline WindowStats window_stats(const Tail<PastTrade>& trades, std::int64_t end_us, std::int64_t window_us) {
  WindowStats stats;
  Int128 gap_squares = 0;
  std::int64_t earliest_us = 0;
  for (std::size_t at = trades.size(); at-- > 0;) {
    const auto& trade = trades[at];
    if (end_us - trade.time_us > window_us) break;
    if (stats.count == 0) {
      stats.last_time_us = trade.time_us;
    } else {
      const Int128 gap = earliest_us - trade.time_us;
      gap_squares += gap * gap;
    }
    earliest_us = trade.time_us;
    ++stats.count;
    stats.volume += trade.qty;
    stats.signed_volume += trade.is_buyer_maker ? -trade.qty : trade.qty;
    stats.notional += Int128{trade.price} * trade.qty;
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
  std::int64_t sum;  // best bid plus best ask
};

// What bid plus ask was at any time of the last five seconds.
class MidHistory {
 public:
  Tail<Mid>& mids() { return mids_; }

  bool is_newer(std::int64_t time_us) const { return mids_.empty() || time_us > mids_.back().time_us; }

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
