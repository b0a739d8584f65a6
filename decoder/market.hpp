// One symbol's market: lines of frames merged by id into an order book, trade windows and the hot state.
//
// Pure state: time comes in as a parameter, nothing is raised for a bad frame, and a frame is applied wholly or not at
// all. Each line carries the same feed; whichever has the next id first is taken.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "batch.hpp"
#include "book.hpp"
#include "decimal.hpp"
#include "feed_clock.hpp"
#include "fields.hpp"
#include "pack.hpp"
#include "sbe.hpp"
#include "scale.hpp"
#include "windows.hpp"

namespace sheetanchor {

inline constexpr int LINES_MAX = 16;
// 4,096 diffs are over six minutes of one 100 ms feed: the reader has long declared a gap by then.
inline constexpr std::size_t PENDING_DIFFS_MAX = 4096;
// However long each of them is: 16 MB of levels.
inline constexpr std::size_t PENDING_LEVELS_MAX = std::size_t{1} << 20;
inline constexpr std::size_t PENDING_TRADES_MAX = 65536;
inline constexpr std::size_t HOT_DEPTH = 10;

// What happened since the market was made. Only counts; nothing decides by them.
struct Counters {
  std::uint64_t frames = 0;
  std::uint64_t diffs_applied = 0, diffs_duplicate = 0, diffs_before_book = 0;
  std::uint64_t trades_applied = 0, trades_duplicate = 0, trades_late = 0;
  std::uint64_t bba_applied = 0, bba_stale = 0;
  std::uint64_t depth20_checked = 0, depth20_mismatches = 0, depth20_ignored = 0;
  std::uint64_t foreign_symbol = 0, trailing_bytes = 0, pending_overflow = 0, bad_value = 0;
  std::uint64_t decode_error[sbe::KIND_COUNT] = {};
};

// Ids that no line has brought yet, while later ones wait.
struct MissingRange {
  std::int64_t expected;
  std::int64_t found;
  std::int64_t since_us;     // stamp of the first frame beyond it
  std::uint32_t lines_past;  // bit per line that has gone beyond it
};

// The newest message of one stream, by id: what came again or late is not it.
struct NewestMessage {
  std::int64_t count = 0;  // messages that brought a new highest id
  std::int64_t id = -1;
  std::int64_t event_us = -1;
  std::int64_t stamp_us = 0;                        // of the entry that brought it first
  bool set_back = false;  // its event times have gone back, and no other stream has contradicted them
  std::int64_t line_stamp_us[LINES_MAX] = {};       // per line: of the last message, new or not; 0 for none
};

enum class Stream : std::size_t { trade, best, depth };
inline constexpr std::size_t STREAM_COUNT = 3;

struct HotState {
  Fields ob, tr_1s, tr_5s, feat;
};

class Market {
 public:
  explicit Market(std::string symbol) : symbol_(std::move(symbol)) {}

  // Feeds one stream entry: per frame u32 length, i64 receive time, frame. Answers the number of frames consumed.
  std::size_t feed(int line, sbe::Bytes batch, std::int64_t stamp_us, std::int64_t stop_at_update_id = 0) {
    if (line < 0 || line >= LINES_MAX)
      throw std::invalid_argument("line: expected 0..15, found " + std::to_string(line));
    check_time(stamp_us, "stamp_us");
    check_envelope(batch);
    source_ = {1u << line, stamp_us};
    stop_at_ = stop_at_update_id > 0 ? stop_at_update_id : NOWHERE;
    drain_diffs();
    std::size_t consumed = 0;
    for (std::size_t at = 0; at < batch.size();) {
      const auto length = sbe::load<std::uint32_t>(batch.data() + at);
      const auto before = update_id_;
      on_frame(batch.subspan(at + ENVELOPE_BYTES, length));
      at += ENVELOPE_BYTES + length;
      ++consumed;
      if (update_id_ == stop_at_ && before != update_id_) break;
    }
    stop_at_ = NOWHERE;
    return consumed;
  }

  // Starts the book afresh at a snapshot; trades, best prices and their history stay. A side that has `cut_off` levels
  // or more was cut off there: beyond its last price a level is unknown until it changes. 0 cuts nothing off.
  void load_snapshot(std::int64_t last_update_id, int price_exponent, int qty_exponent, std::vector<Level> bids,
                     std::vector<Level> asks, std::int64_t stamp_us, std::size_t cut_off = 0) {
    check_id(last_update_id, "last_update_id");
    check_time(stamp_us, "stamp_us");
    const auto factors = adopt(price_exponent, qty_exponent);
    if (!factors) throw std::invalid_argument("price_exponent, qty_exponent: these values do not fit the market's own");
    require_levels(bids, *factors, "bids");
    require_levels(asks, *factors, "asks");
    Book fresh;
    if (!fresh.bids.replace(std::move(bids))) throw std::invalid_argument("bids: a price comes twice");
    if (!fresh.asks.replace(std::move(asks))) throw std::invalid_argument("asks: a price comes twice");
    book_ = std::move(fresh);
    cut_off_ = cut_off;
    bid_edge_ = book_.bids.edge(cut_off);
    ask_edge_ = book_.asks.edge(cut_off);
    has_book_ = true;
    update_id_ = last_update_id;
    pending_diffs_.clear();
    pending_levels_ = 0;
    overflow_lines_ = 0;
    if (event_us() < 0) clock_.begin(-1, stamp_us);
    book_event_us_ = std::max(book_event_us_, event_us());
    note_mid(book_event_us_);
  }

  // Trades from elsewhere (REST), merged by id with those of the lines.
  void seed_trades(std::vector<PastTrade> trades, int price_exponent, int qty_exponent) {
    const auto factors = adopt(price_exponent, qty_exponent);
    if (!factors) throw std::invalid_argument("price_exponent, qty_exponent: these values do not fit the market's own");
    for (auto& trade : trades) {
      check_id(trade.id, "trade id");
      check_time(trade.time_us, "trade time_us");
      if (!convert_trade(trade, *factors))
        throw std::invalid_argument("trade " + std::to_string(trade.id) + ": expected a price and a quantity above 0");
    }
    std::sort(trades.begin(), trades.end(), [](const PastTrade& a, const PastTrade& b) { return a.id < b.id; });
    source_ = {0, stamp_us()};
    for (const auto& trade : trades) take_trade(trade);
  }

  std::string pack_book(std::int64_t epoch, std::map<std::string, std::string> line_ids) const {
    PackedBook packed;
    packed.symbol = symbol_;
    packed.price_exponent = price_exponent_;
    packed.qty_exponent = qty_exponent_;
    packed.epoch = epoch;
    packed.update_id = update_id_;
    if (best_has_both_sides()) {  // an empty side is of no use to a process that loads the book later
      packed.best_id = best_id_;
      packed.bid = bid_;
      packed.ask = ask_;
    }
    packed.trade_id = trade_id_;
    packed.event_us = event_us();
    packed.stamp_us = stamp_us();
    packed.cut_off = static_cast<std::int64_t>(cut_off_);
    packed.bid_edge = bid_edge_;
    packed.ask_edge = ask_edge_;
    packed.line_ids = std::move(line_ids);
    packed.bids = book_.bids.best_levels(LEVELS_MAX);
    packed.asks = book_.asks.best_levels(LEVELS_MAX);
    if (!has_book_) throw std::invalid_argument("book: there is none yet");
    return pack(packed);
  }

  // Takes over a packed book; everything but the counters starts afresh. Replayed trades up to the packed trade id and
  // best prices up to the packed id fill the windows again.
  std::pair<std::int64_t, std::map<std::string, std::string>> load_book(std::string_view blob) {
    auto packed = unpack(blob);
    if (packed.symbol != symbol_)
      throw std::invalid_argument("book: expected symbol " + symbol_ + ", found " + packed.symbol);
    Market fresh(symbol_);
    fresh.counters_ = counters_;
    fresh.has_book_ = true;
    fresh.price_exponent_ = packed.price_exponent;
    fresh.qty_exponent_ = packed.qty_exponent;
    fresh.update_id_ = packed.update_id;
    fresh.last_seen_update_id_ = packed.update_id;
    fresh.best_id_ = fresh.refill_best_id_ = packed.best_id;
    fresh.bid_ = packed.bid;
    fresh.ask_ = packed.ask;
    fresh.trade_id_ = packed.trade_id;
    fresh.clock_.begin(packed.event_us, packed.stamp_us);
    fresh.book_event_us_ = packed.event_us;
    fresh.cut_off_ = static_cast<std::size_t>(packed.cut_off);
    fresh.bid_edge_ = packed.bid_edge;
    fresh.ask_edge_ = packed.ask_edge;
    fresh.book_.bids.replace(std::move(packed.bids));
    fresh.book_.asks.replace(std::move(packed.asks));
    *this = std::move(fresh);
    return {packed.epoch, std::move(packed.line_ids)};
  }

  std::optional<MissingRange> missing_depth() const {
    // After a stop, what waits may be next already.
    if (pending_diffs_.empty() || pending_diffs_.begin()->first <= update_id_ + 1) return std::nullopt;
    MissingRange range{update_id_ + 1, pending_diffs_.begin()->first, INT64_MAX, overflow_lines_};
    for (const auto& [id, diff] : pending_diffs_) widen(range, diff.source);
    return range;
  }
  std::optional<MissingRange> missing_trade_ids() const {
    if (pending_trades_.empty()) return std::nullopt;
    MissingRange range{trade_id_ + 1, pending_trades_.begin()->first, INT64_MAX, 0};
    for (const auto& [id, pending] : pending_trades_) widen(range, pending.source);
    return range;
  }

  // Gives up waiting: goes on from what is pending. The caller has declared the gap.
  void skip_missing_depth() {
    if (pending_diffs_.empty()) return;
    update_id_ = std::max(update_id_, pending_diffs_.begin()->first - 1);
    drain_diffs();
  }
  void skip_missing_trade_ids() {
    if (pending_trades_.empty()) return;
    trade_id_ = pending_trades_.begin()->first - 1;
    drain_trades();
  }

  HotState hot_state(std::int64_t now_us) const;  // in hot_state.hpp

  // Quantity traded after `start_us` up to and including `end_us`.
  double volume_between(std::int64_t start_us, std::int64_t end_us) const {
    Int128 volume = 0;
    for (const auto& trade : history_.trades())
      if (trade.time_us > start_us && trade.time_us <= end_us) volume += trade.qty;
    return scaled(volume, qty_exponent_);
  }

  const std::string& symbol() const { return symbol_; }
  const Book& book() const { return book_; }
  const Counters& counters() const { return counters_; }
  bool has_book() const { return has_book_; }
  bool crossed() const { return book_.crossed(); }
  std::size_t cut_off() const { return cut_off_; }
  // Price of the last level that is known of a side, mantissa; WHOLE if all are.
  std::int64_t bid_edge() const { return bid_edge_; }
  std::int64_t ask_edge() const { return ask_edge_; }
  // How many of a side's best `depth` levels are known, of the side that has fewer; `depth` if all are.
  std::size_t known_levels(std::size_t depth) const {
    return std::min(book_.bids.known_levels(depth, bid_edge_), book_.asks.known_levels(depth, ask_edge_));
  }
  int price_exponent() const { return price_exponent_; }
  int qty_exponent() const { return qty_exponent_; }
  std::int64_t update_id() const { return update_id_; }
  std::int64_t best_id() const { return best_id_; }
  std::int64_t trade_id() const { return trade_id_; }
  std::int64_t last_seen_update_id() const { return last_seen_update_id_; }
  std::int64_t event_us() const { return clock_.event_us(); }
  std::int64_t stamp_us() const { return clock_.stamp_us(); }
  std::optional<double> mid() const {
    const auto best = best_prices();
    if (!best) return std::nullopt;
    return scaled(best->first.price + best->second.price, price_exponent_) / 2;
  }
  // How often the exchange's clock was found to have been set, and whether that is in question now.
  std::int64_t clock_steps() const { return clock_steps_; }
  std::int64_t misdated_trades() const { return misdated_trades_; }
  bool clock_untrusted() const { return clock_.doubts(); }
  // How many bestBidAsk the book has come to agree with, each looked at once: when the book reaches its update.
  std::int64_t best_confirmed() const { return best_confirmed_; }
  // How many trades a window of so long, ending now, lacks or holds too many of: its ids have to be consecutive up to the
  // newest, or some were lost, or dated by a clock that was wrong.
  std::int64_t missing_trades(std::int64_t now_us, std::int64_t span_us) const {
    const auto& trades = history_.trades();
    if (trades.empty()) return 0;
    const auto end_us = clock_.at(now_us);
    std::int64_t first = INT64_MAX, last = -1, count = 0;
    std::vector<std::int64_t> odd;  // ahead, or before an earlier trade; from the newest on
    for (std::size_t at = trades.size(); at-- > 0;) {
      const auto& trade = trades[at];
      if (end_us - trade.reach_us > span_us) break;
      if (trade.time_us - end_us > AHEAD_US || trade.reach_us - trade.time_us > AHEAD_US) odd.push_back(trade.id);
      if (end_us - trade.time_us > span_us || trade.time_us - end_us > AHEAD_US) continue;
      ++count;
      first = std::min(first, trade.id);
      last = std::max(last, trade.id);
    }
    if (const auto& newest = trades.back(); newest.time_us - end_us > AHEAD_US) {
      first = std::min(first, newest.id);
      last = newest.id;
    }
    // Right before the first one of the window, one with an odd time may belong to it.
    for (const auto id : odd)
      if (id == first - 1) first = id;
    if (last < 0) return 0;
    // One that was lost right before the first of the window may have happened within it.
    const bool lost_before = trades.front().id < first && !history_.holds(first - 1);
    return last - first + 1 - count + (lost_before ? 1 : 0);
  }
  const NewestMessage& message(Stream stream) const { return newest_messages_[static_cast<std::size_t>(stream)]; }
  // Best bid and ask as the newest bestBidAsk has them, whatever the book has; zeros for a side without orders.
  std::optional<std::pair<Level, Level>> last_best() const {
    if (best_id_ < 0) return std::nullopt;
    return std::pair{bid_, ask_};
  }
  std::optional<double> last_trade_price() const {
    if (history_.trades().empty()) return std::nullopt;
    return scaled(history_.trades().back().price, price_exponent_);
  }

 private:
  static constexpr std::int64_t NOWHERE = -1;

  struct Source {
    std::uint32_t lines = 0;
    std::int64_t stamp_us = 0;
  };
  struct PendingDiff {
    std::int64_t last_id;
    std::int64_t event_us;
    std::vector<Level> bids, asks;
    Source source;

    std::size_t levels() const { return bids.size() + asks.size(); }
  };
  struct PendingTrade {
    PastTrade trade;
    Source source;
  };
  static void check_id(std::int64_t id, const char* field) {
    if (id < 0 || id >= sbe::ID_LIMIT)
      throw std::invalid_argument(std::string(field) + ": expected 0..2^62-1, found " + std::to_string(id));
  }
  static void check_time(std::int64_t time_us, const char* field) {
    if (time_us < 0 || time_us >= sbe::TIME_LIMIT_US)
      throw std::invalid_argument(std::string(field) + ": expected 0..2^52-1, found " + std::to_string(time_us));
  }
  static bool is_id(std::int64_t id) { return id >= 0 && id < sbe::ID_LIMIT; }
  static bool is_time(std::int64_t time_us) { return time_us >= 0 && time_us < sbe::TIME_LIMIT_US; }

  void on_frame(sbe::Bytes bytes) {
    ++counters_.frames;
    auto& frame = frame_;
    sbe::Error error;
    if (!sbe::parse(bytes, frame, error)) {
      ++counters_.decode_error[static_cast<std::size_t>(error.kind)];
      return;
    }
    if (frame.trailing_bytes != 0) ++counters_.trailing_bytes;
    if (frame.symbol != symbol_) {
      ++counters_.foreign_symbol;
      return;
    }
    if (!is_time(frame.event_time_us) || !dispatch(frame)) ++counters_.bad_value;
  }

  // False when a value is beyond use; nothing has been changed then.
  bool dispatch(const sbe::Frame& frame) {
    switch (frame.template_id) {
      case sbe::TRADES:
        return on_trades(frame);
      case sbe::BEST_BID_ASK:
        return on_best(frame);
      case sbe::DEPTH_SNAPSHOT:
        return on_depth_snapshot(frame);
      default:
        return on_diff(frame);
    }
  }

  // Whether a frame with a new id shows that the clock was set back: its own stream's times have gone back. A stream that
  // is merely late brings times before those of other streams, but never before its own.
  bool goes_back(Stream stream, std::int64_t time_us) {
    auto& message = newest_messages_[static_cast<std::size_t>(stream)];
    if (message.event_us >= 0 && time_us < message.event_us - FeedClock::SLACK_US) message.set_back = true;
    else if (time_us >= event_us() - FeedClock::SLACK_US) message.set_back = false;
    return message.set_back;
  }

  void note_event(std::int64_t time_us, bool is_news, bool goes_back) {
    const auto before_us = clock_.at(source_.stamp_us);
    if (const auto set_by_us = clock_.note(time_us, source_.stamp_us, is_news, goes_back); set_by_us != 0)
      follow_clock(before_us, before_us + set_by_us), ++clock_steps_;
    if (clock_.begins_to_doubt()) undoubted_trade_id_ = trade_id_;
  }

  void note_pulse(Stream stream, std::int64_t id, std::int64_t event_us) {
    auto& message = newest_messages_[static_cast<std::size_t>(stream)];
    message.line_stamp_us[std::countr_zero(source_.lines)] = source_.stamp_us;  // a frame comes by one line
    if (id <= message.id) return;
    ++message.count;
    message.id = id;
    message.event_us = event_us;
    message.stamp_us = source_.stamp_us;
  }

  // The exchange's clock was set: all that is dated by its old reading moves along.
  void follow_clock(std::int64_t from_us, std::int64_t to_us) {
    history_.set_clock(undoubted_trade_id_, to_us - from_us, to_us);
    mids_.set_clock(to_us - from_us);
    if (book_event_us_ >= 0) book_event_us_ += to_us - from_us;
    for (auto& [id, diff] : pending_diffs_) diff.event_us = moved(diff.event_us, from_us, to_us);
    for (auto& [id, pending] : pending_trades_) pending.trade.time_us = moved(pending.trade.time_us, from_us, to_us);
  }

  std::int64_t date_of(const sbe::Frame& frame) const { return clock_.date(frame.event_time_us, source_.stamp_us); }

  bool on_trades(const sbe::Frame& frame) {
    const auto factors = adopt(frame.price_exponent, frame.qty_exponent);
    if (!factors || !is_time(frame.transact_time_us)) return false;
    scratch_trades_.clear();
    for (std::uint32_t at = 0; at < frame.trades.count; ++at) {
      const auto wire = frame.trades.trade(at);
      PastTrade trade{wire.id, wire.price, wire.qty, frame.transact_time_us, wire.is_buyer_maker};
      if (!is_id(trade.id) || !convert_trade(trade, *factors)) return false;
      scratch_trades_.push_back(trade);
    }
    std::int64_t newest_id = -1;
    for (const auto& trade : scratch_trades_) newest_id = std::max(newest_id, trade.id);
    // Not `trade_id_`: behind a missing range a late line brings ids beyond it, and older times than the other line.
    const bool is_news = newest_id > std::max(trade_id_, message(Stream::trade).id);
    note_event(frame.event_time_us, is_news, is_news && goes_back(Stream::trade, frame.event_time_us));
    // Windows hold a trade by its own time: one that is far off is in none, and nothing else shows that it is missing.
    const auto off_us = std::abs(frame.transact_time_us - clock_.at(source_.stamp_us));
    if (is_news && off_us > 2 * FeedClock::SLACK_US) ++misdated_trades_;
    if (newest_id >= 0) note_pulse(Stream::trade, newest_id, frame.event_time_us);
    for (const auto& trade : scratch_trades_) take_trade(trade);
    return true;
  }

  void take_trade(const PastTrade& trade) {
    if (trade_id_ < 0 || trade.id == trade_id_ + 1) {
      apply_trade(trade);
      drain_trades();
    } else if (trade.id <= trade_id_) {
      ++(history_.insert(trade, event_us()) ? counters_.trades_late : counters_.trades_duplicate);
    } else if (const auto known = pending_trades_.find(trade.id); known != pending_trades_.end()) {
      known->second.source.lines |= source_.lines;
      ++counters_.trades_duplicate;
    } else if (pending_trades_.size() < PENDING_TRADES_MAX) {
      pending_trades_.emplace(trade.id, PendingTrade{trade, source_});
    } else {
      ++counters_.pending_overflow;
    }
  }

  void apply_trade(const PastTrade& trade) {
    trade_id_ = trade.id;
    history_.append(trade, event_us());
    ++counters_.trades_applied;
  }

  void drain_trades() {
    while (!pending_trades_.empty() && pending_trades_.begin()->first == trade_id_ + 1) {
      apply_trade(pending_trades_.begin()->second.trade);
      pending_trades_.erase(pending_trades_.begin());
    }
  }

  bool on_best(const sbe::Frame& frame) {
    const auto factors = adopt(frame.price_exponent, frame.qty_exponent);
    Level bid{}, ask{};
    if (!factors || !is_id(frame.last_update_id) || !convert_best(frame.bid, *factors, bid) ||
        !convert_best(frame.ask, *factors, ask))
      return false;
    const bool is_news = frame.last_update_id > best_id_;
    note_event(frame.event_time_us, is_news, is_news && goes_back(Stream::best, frame.event_time_us));
    note_pulse(Stream::best, frame.last_update_id, frame.event_time_us);
    if (frame.last_update_id <= best_id_) {
      ++counters_.bba_stale;
      if (frame.last_update_id <= refill_best_id_ && frame.event_time_us <= event_us() && bid.qty > 0 && ask.qty > 0 &&
          mids_.is_newer(frame.event_time_us))
        mids_.note(frame.event_time_us, bid.price + ask.price, event_us());
      return true;
    }
    const auto date_us = date_of(frame);
    best_id_ = frame.last_update_id;
    bid_ = bid;
    ask_ = ask;
    best_checked_ = false;
    check_best();
    ++counters_.bba_applied;
    if (best_id_ > update_id_) book_event_us_ = std::max(book_event_us_, date_us);
    note_mid(date_us);
    return true;
  }

  bool on_depth_snapshot(const sbe::Frame& frame) {
    const auto factors = adopt(frame.price_exponent, frame.qty_exponent);
    if (!factors || !convert_sides(frame, *factors)) return false;
    note_event(frame.event_time_us, false, false);
    if (!has_book_ || frame.last_update_id != update_id_) {
      ++counters_.depth20_ignored;
      return true;
    }
    ++counters_.depth20_checked;
    if (!agrees(book_.bids, scratch_bids_) || !agrees(book_.asks, scratch_asks_)) ++counters_.depth20_mismatches;
    return true;
  }

  // A snapshot with fewer than 20 levels shows the whole side.
  template <class AnySide>
  static bool agrees(const AnySide& side, const std::vector<Level>& shown) {
    return (shown.size() >= 20 || side.size() == shown.size()) && side.best_levels(shown.size()) == shown;
  }

  bool on_diff(const sbe::Frame& frame) {
    const auto first = frame.first_update_id, last = frame.last_update_id;
    if (!is_id(first) || !is_id(last) || last < first) return false;
    if (has_book_ && last <= update_id_) {
      note_event(frame.event_time_us, false, false);
      note_pulse(Stream::depth, last, frame.event_time_us);
      ++counters_.diffs_duplicate;
      return true;
    }
    const auto factors = adopt(frame.price_exponent, frame.qty_exponent);
    if (!factors) return false;
    // Nearly every diff is at the market's own exponents and goes to the book from the frame's bytes.
    const bool as_it_is = factors->is_one();
    if (as_it_is ? !is_sound(frame.bids) || !is_sound(frame.asks) : !convert_sides(frame, *factors)) return false;
    const bool is_news = last > last_seen_update_id_;
    note_event(frame.event_time_us, is_news, is_news && goes_back(Stream::depth, frame.event_time_us));
    note_pulse(Stream::depth, last, frame.event_time_us);
    last_seen_update_id_ = std::max(last_seen_update_id_, last);
    if (!has_book_) {
      ++counters_.diffs_before_book;
    } else if (first <= update_id_ + 1) {
      if (as_it_is) apply_diff(last, date_of(frame), frame.bids, frame.asks);
      else apply_diff(last, date_of(frame), scratch_bids_, scratch_asks_);
      if (last != stop_at_) drain_diffs();
    } else {
      if (as_it_is) convert_sides(frame, *factors);
      hold_diff(first, last, date_of(frame));
    }
    return true;
  }

  template <class Changes>
  void apply_diff(std::int64_t last, std::int64_t time_us, const Changes& bids, const Changes& asks) {
    book_.bids.apply(bids);
    book_.asks.apply(asks);
    update_id_ = last;
    check_best();
    ++counters_.diffs_applied;
    book_event_us_ = std::max(book_event_us_, time_us);
    note_mid(time_us);
  }

  // Once for each bestBidAsk: whether the book says the same when it knows that much.
  void check_best() {
    if (best_checked_ || best_id_ < 0 || !has_book_ || best_id_ > update_id_ || !book_.has_both_sides()) return;
    best_checked_ = true;
    if (book_.bids.best().price == bid_.price && book_.asks.best().price == ask_.price) ++best_confirmed_;
  }

  void hold_diff(std::int64_t first, std::int64_t last, std::int64_t time_us) {
    const auto known = pending_diffs_.find(first);
    if (known != pending_diffs_.end()) {
      known->second.source.lines |= source_.lines;
      if (last <= known->second.last_id) {
        ++counters_.diffs_duplicate;
        return;
      }
    }
    const auto levels = pending_levels_ + scratch_bids_.size() + scratch_asks_.size() -
                        (known != pending_diffs_.end() ? known->second.levels() : 0);
    if ((known == pending_diffs_.end() && pending_diffs_.size() >= PENDING_DIFFS_MAX) || levels > PENDING_LEVELS_MAX) {
      ++counters_.pending_overflow;
      overflow_lines_ |= source_.lines;
      return;
    }
    pending_levels_ = levels;
    const auto source = known != pending_diffs_.end() ? known->second.source : source_;
    pending_diffs_.insert_or_assign(first, PendingDiff{last, time_us, scratch_bids_, scratch_asks_, source});
  }

  void drain_diffs() {
    while (!pending_diffs_.empty() && pending_diffs_.begin()->first <= update_id_ + 1) {
      const auto diff = std::move(pending_diffs_.begin()->second);
      pending_diffs_.erase(pending_diffs_.begin());
      pending_levels_ -= diff.levels();
      if (diff.last_id <= update_id_) continue;
      apply_diff(diff.last_id, diff.event_us, diff.bids, diff.asks);
      if (update_id_ == stop_at_) break;
    }
    if (pending_diffs_.empty()) overflow_lines_ = 0;
  }

  static void widen(MissingRange& range, const Source& source) {
    range.since_us = std::min(range.since_us, source.stamp_us);
    range.lines_past |= source.lines;
  }

  bool best_is_newest() const { return best_id_ >= 0 && (!has_book_ || best_id_ > update_id_); }
  bool best_has_both_sides() const { return bid_.qty > 0 && ask_.qty > 0; }

  // The best prices of whichever knows the later update: bestBidAsk or the depth book.
  std::optional<std::pair<Level, Level>> best_prices() const {
    const bool deep = has_book_ && book_.has_both_sides();
    if (best_is_newest())
      return best_has_both_sides() ? std::optional(std::pair{bid_, ask_}) : std::nullopt;
    if (!deep) return std::nullopt;
    return std::pair{book_.bids.best(), book_.asks.best()};
  }

  void note_mid(std::int64_t time_us) {
    if (time_us < 0) return;
    if (best_is_newest()) {
      if (best_has_both_sides()) mids_.note(time_us, bid_.price + ask_.price, event_us());
    } else if (const auto best = best_prices()) mids_.note(time_us, best->first.price + best->second.price, event_us());
  }

  double mid_return(std::int64_t end_us, std::int64_t back_us) const {
    const auto best = best_prices();
    if (!best) return 0;
    auto then = mids_.sum_at(end_us - back_us);
    if (!then) then = twice_trade_price_at(end_us - back_us);
    if (!then) return 0;
    return static_cast<double>(best->first.price + best->second.price) / static_cast<double>(*then) - 1;
  }

  // Right after a rebuild there is no history of mids; the last trade's price stands in for one.
  std::optional<std::int64_t> twice_trade_price_at(std::int64_t time_us) const {
    const auto& trades = history_.trades();
    for (std::size_t at = trades.size(); at-- > 0;)
      if (trades[at].time_us <= time_us) return 2 * trades[at].price;
    return std::nullopt;
  }

  // Holds no value yet, so that the next one decides the exponents.
  bool is_blank() const { return !has_book_ && best_id_ < 0 && trade_id_ < 0; }
  std::optional<Factors> adopt(int price_exponent, int qty_exponent) {
    if (price_exponent == price_exponent_ && qty_exponent == qty_exponent_) return Factors{};
    return adopt_other(price_exponent, qty_exponent);
  }
  std::optional<Factors> adopt_other(int price_exponent, int qty_exponent);
  bool rescale(Factors factors);
  template <class Visit>
  bool each_value(Visit visit);

  bool convert_sides(const sbe::Frame& frame, Factors factors) {
    return convert_group(frame.bids, factors, scratch_bids_) && convert_group(frame.asks, factors, scratch_asks_);
  }

  std::string symbol_;
  int price_exponent_ = 0, qty_exponent_ = 0;

  bool has_book_ = false;
  Book book_;
  std::size_t cut_off_ = 0;
  std::int64_t bid_edge_ = WHOLE, ask_edge_ = WHOLE;
  std::int64_t update_id_ = 0, last_seen_update_id_ = 0;
  std::map<std::int64_t, PendingDiff> pending_diffs_;  // by first id
  std::size_t pending_levels_ = 0;
  std::uint32_t overflow_lines_ = 0;
  std::int64_t stop_at_ = NOWHERE;

  std::int64_t best_id_ = -1, refill_best_id_ = -1;
  Level bid_{}, ask_{};
  bool best_checked_ = false;
  std::int64_t best_confirmed_ = 0;

  std::int64_t trade_id_ = -1;
  std::map<std::int64_t, PendingTrade> pending_trades_;
  TradeHistory history_;
  MidHistory mids_;

  FeedClock clock_;
  std::int64_t clock_steps_ = 0, misdated_trades_ = 0;
  std::int64_t undoubted_trade_id_ = -1;  // newest trade when event times began to say that the clock was set
  std::int64_t book_event_us_ = -1;  // event time of the last change of book or best prices
  Source source_;
  NewestMessage newest_messages_[STREAM_COUNT];
  Counters counters_;
  sbe::Frame frame_;  // kept, since clearing it would cost more than reading a frame
  std::vector<Level> scratch_bids_, scratch_asks_;
  std::vector<PastTrade> scratch_trades_;
};

// Calls `visit(price, qty, price_max)` on every pair the market holds, and on sums of two prices with a quantity of 0.
template <class Visit>
bool Market::each_value(Visit visit) {
  std::int64_t none = 0;
  const auto all = [&visit](std::vector<Level>& levels) {
    return std::all_of(levels.begin(), levels.end(),
                       [&visit](Level& level) { return visit(level.price, level.qty, PRICE_MAX); });
  };
  const auto one = [&visit](std::int64_t& price, std::int64_t& qty) { return visit(price, qty, PRICE_MAX); };
  if (!book_.bids.each(one) || !book_.asks.each(one)) return false;
  if (!one(bid_edge_, none) || !one(ask_edge_, none)) return false;
  if (best_id_ >= 0 && (!one(bid_.price, bid_.qty) || !one(ask_.price, ask_.qty))) return false;
  for (auto& [id, diff] : pending_diffs_)
    if (!all(diff.bids) || !all(diff.asks)) return false;
  for (auto& [id, pending] : pending_trades_)
    if (!visit(pending.trade.price, pending.trade.qty, PRICE_MAX)) return false;
  if (!history_.each([&visit](PastTrade& trade) { return visit(trade.price, trade.qty, PRICE_MAX); })) return false;
  auto& mids = mids_.mids();
  for (std::size_t at = 0; at < mids.size(); ++at)
    if (!visit(mids[at].sum, none, 2 * PRICE_MAX)) return false;
  return true;
}

// All values times the factors, or none of them when one would no longer fit.
inline bool Market::rescale(Factors factors) {
  const bool fits = each_value([factors](std::int64_t price, std::int64_t qty, std::int64_t price_max) {
    return times(price, factors.price, price_max) && times(qty, factors.qty, QTY_MAX) &&
           Int128{price} * qty <= PRODUCT_MAX;
  });
  return fits && each_value([factors](std::int64_t& price, std::int64_t& qty, std::int64_t) {
    price *= factors.price;
    qty *= factors.qty;
    return true;
  });
}

// The market keeps the finest exponents it has met; a coarser frame is multiplied up to them, exactly.
inline std::optional<Factors> Market::adopt_other(int price_exponent, int qty_exponent) {
  if (std::abs(price_exponent) > EXPONENT_MAX || std::abs(qty_exponent) > EXPONENT_MAX) return std::nullopt;
  if (is_blank()) {
    price_exponent_ = price_exponent;
    qty_exponent_ = qty_exponent;
    return Factors{};
  }
  const int price_to = std::min(price_exponent, price_exponent_), qty_to = std::min(qty_exponent, qty_exponent_);
  const Factors own{integer_power_of_ten(price_exponent_ - price_to), integer_power_of_ten(qty_exponent_ - qty_to)};
  const Factors frame{integer_power_of_ten(price_exponent - price_to), integer_power_of_ten(qty_exponent - qty_to)};
  if (own.price == 0 || own.qty == 0 || frame.price == 0 || frame.qty == 0) return std::nullopt;
  if ((own.price != 1 || own.qty != 1) && !rescale(own)) return std::nullopt;
  price_exponent_ = price_to;
  qty_exponent_ = qty_to;
  return frame;
}

}  // namespace sheetanchor
