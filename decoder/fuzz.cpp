// libFuzzer target: arbitrary bytes as one frame, as a script of calls on a Market, and as changes of a book that is
// compared with a plain one.
//
// The first byte of an input chooses; see decoder/README.md for how to run it. A broken invariant aborts.
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "fuzz_book.hpp"
#include "hot_state.hpp"
#include "market.hpp"
#include "sbe.hpp"

namespace {

using sheetanchor::Level;
using sheetanchor::Market;
using sheetanchor::fuzz::BookScript;
using sheetanchor::fuzz::Cursor;
using sheetanchor::fuzz::require;
namespace sbe = sheetanchor::sbe;

sbe::Message copy_of(const sbe::Frame& frame) {
  sbe::Message message{frame, {}, {}, {}, std::string(frame.symbol)};
  for (std::uint32_t at = 0; at < frame.trades.count; ++at) message.trades.push_back(frame.trades.trade(at));
  for (std::uint32_t at = 0; at < frame.bids.count; ++at) message.bids.push_back(frame.bids.level(at));
  for (std::uint32_t at = 0; at < frame.asks.count; ++at) message.asks.push_back(frame.asks.level(at));
  return message;
}

void one_frame(sbe::Bytes bytes) {
  sbe::Frame frame;
  sbe::Error error;
  if (!sbe::parse(bytes, frame, error)) {
    require(error.offset <= bytes.size() && !error.message().empty());
    return;
  }
  const auto again = sbe::encode(copy_of(frame));
  sbe::Frame reread;
  require(sbe::parse(again, reread, error));
  require(reread.trailing_bytes == 0 && again.size() <= bytes.size() - frame.trailing_bytes + 12);
  require(sbe::encode(copy_of(reread)) == again);
}

std::vector<std::uint8_t> envelope(sbe::Bytes frame) {
  std::vector<std::uint8_t> out;
  sbe::detail::put(out, static_cast<std::uint32_t>(frame.size()));
  sbe::detail::put(out, std::int64_t{0});
  out.insert(out.end(), frame.begin(), frame.end());
  return out;
}

// A sound frame near the market's ids, from a few bytes of input.
std::vector<std::uint8_t> likely_frame(Cursor& in, const Market& market) {
  sbe::Message message;
  auto& fields = message.fields;
  fields.template_id = static_cast<std::uint16_t>(sbe::TRADES + in.take<std::uint8_t>() % 4);
  const auto shape = in.take<std::uint8_t>();
  fields.price_exponent = static_cast<std::int8_t>(shape & 1 ? -8 : -(shape >> 4));
  fields.qty_exponent = static_cast<std::int8_t>(shape & 2 ? -8 : -(shape >> 4));
  fields.event_time_us = fields.transact_time_us = 1'700'000'000'000'000 + in.take<std::uint32_t>();
  fields.first_update_id = market.update_id() + 1 + in.take<std::int8_t>();
  fields.last_update_id = fields.first_update_id + (in.take<std::uint8_t>() & 7);
  fields.bid = {in.take<std::uint16_t>(), in.take<std::uint8_t>()};
  fields.ask = {in.take<std::uint16_t>(), in.take<std::uint8_t>()};
  message.symbol = "X";
  for (int entry = shape >> 2 & 3; entry-- > 0;) {
    message.bids.push_back({in.take<std::uint16_t>(), in.take<std::uint8_t>()});
    message.asks.push_back({in.take<std::uint16_t>(), in.take<std::uint8_t>()});
    message.trades.push_back({market.trade_id() + 1 + in.take<std::int8_t>(), in.take<std::uint16_t>(),
                              in.take<std::uint8_t>(), (shape & 64) != 0});
  }
  return sbe::encode(message);
}

void check(const Market& market) {
  const auto bids = market.book().bids.best_levels(sheetanchor::LEVELS_MAX);
  const auto asks = market.book().asks.best_levels(sheetanchor::LEVELS_MAX);
  for (std::size_t at = 0; at < bids.size(); ++at)
    require(bids[at].qty > 0 && bids[at].price > 0 && (at == 0 || bids[at - 1].price > bids[at].price));
  for (std::size_t at = 0; at < asks.size(); ++at)
    require(asks[at].qty > 0 && asks[at].price > 0 && (at == 0 || asks[at - 1].price < asks[at].price));
  if (const auto range = market.missing_depth())
    require(range->found > range->expected && range->since_us != INT64_MAX);
  if (const auto range = market.missing_trade_ids())
    require(range->found > range->expected && range->since_us != INT64_MAX);
}

void pack_and_load(const Market& market) {
  if (!market.has_book()) return;
  const auto blob = market.pack_book(7, {{"a", "1-0"}});
  Market other(market.symbol());
  require(other.load_book(blob).first == 7);
  require(other.pack_book(7, {{"a", "1-0"}}) == blob);
}

// `deep`: with so many levels a side that it gets a row.
void load_levels(Cursor& in, Market& market, std::int64_t stamp_us, bool deep) {
  std::vector<Level> bids, asks;
  for (std::int64_t nth = 0; deep && nth < 300; ++nth) {
    bids.push_back({30'000 - 2 * nth, 1 + nth});
    asks.push_back({30'001 + 3 * nth, 1 + nth});
  }
  for (auto count = in.take<std::uint8_t>() & 15; count-- > 0;) {
    bids.push_back({in.take<std::uint16_t>(), in.take<std::uint8_t>()});
    asks.push_back({in.take<std::int64_t>(), in.take<std::int64_t>()});
  }
  const auto cut_off = in.take<std::uint8_t>() & 15;
  market.load_snapshot(in.take<std::uint16_t>(), in.take<std::int8_t>(), in.take<std::int8_t>(), bids, asks, stamp_us,
                       static_cast<std::size_t>(cut_off));
}

void seed(Cursor& in, Market& market) {
  std::vector<sheetanchor::PastTrade> trades;
  for (auto count = in.take<std::uint8_t>() & 15; count-- > 0;)
    trades.push_back({in.take<std::uint16_t>(), in.take<std::int64_t>(), in.take<std::uint16_t>(),
                      in.take<std::uint32_t>(), in.take<std::uint8_t>() > 127});
  market.seed_trades(std::move(trades), in.take<std::int8_t>(), in.take<std::int8_t>());
}

// A packed book as the input has it, with the mark and checksum made right so that what is behind them is reached.
void load_mended(sbe::Bytes bytes, Market& market) {
  std::string blob(bytes.begin(), bytes.end());
  if (blob.size() >= 12) {
    blob.replace(0, 6, std::string(blob[4] & 1 ? "SAbk\x01\x00" : "SAbk\x02\x00", 6));
    const auto crc = sheetanchor::crc32(std::string_view(blob).substr(0, blob.size() - 4));
    std::memcpy(blob.data() + blob.size() - 4, &crc, sizeof crc);
  }
  market.load_book(blob);
}

void one_call(Cursor& in, Market& market, std::int64_t& stamp_us) {
  const auto op = in.take<std::uint8_t>();
  const int line = op >> 4 & 3;
  stamp_us += in.take<std::uint16_t>();
  const auto before = market.update_id();
  switch (op & 15) {
    case 0:
      market.feed(line, in.slice(in.take<std::uint16_t>()), stamp_us);
      break;
    case 1:
    case 2:
      market.feed(line, envelope(in.slice(in.take<std::uint16_t>())), stamp_us, before + in.take<std::uint8_t>());
      break;
    case 3:
      load_levels(in, market, stamp_us, (op & 128) != 0);
      return;
    case 4:
      load_mended(in.slice(in.take<std::uint16_t>()), market);
      return;
    case 5:
      seed(in, market);
      break;
    case 6:
      market.skip_missing_depth();
      break;
    case 7:
      market.skip_missing_trade_ids();
      break;
    case 8:
      pack_and_load(market);
      break;
    case 9:
      market.volume_between(in.take<std::int64_t>(), in.take<std::int64_t>());
      market.hot_state(in.take<std::int64_t>());
      break;
    case 10:
      market.hot_state(stamp_us);
      break;
    default:
      market.feed(line, envelope(likely_frame(in, market)), stamp_us, op & 1 ? before + 3 : 0);
  }
  require(market.update_id() >= before);
}

void script(sbe::Bytes bytes) {
  Cursor in(bytes);
  Market market("X");
  std::int64_t stamp_us = 0;
  while (!in.done()) {
    try {
      one_call(in, market, stamp_us);
    } catch (const std::invalid_argument&) {
      // Refused: the market has to be sound all the same.
    }
    check(market);
  }
  pack_and_load(market);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const sbe::Bytes rest(data + 1, size - 1);
  if (data[0] & 1) script(rest);
  else if (data[0] & 2) BookScript<sheetanchor::Which::bid>(Cursor(rest)).run();
  else if (data[0] & 4) BookScript<sheetanchor::Which::ask>(Cursor(rest)).run();
  else one_frame(rest);
  return 0;
}
