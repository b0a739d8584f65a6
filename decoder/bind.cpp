// The only file that knows Python: it turns Python values into the plain types of the headers and back.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "hot_state.hpp"
#include "market.hpp"
#include "sbe.hpp"

namespace nb = nanobind;
namespace sbe = sheetanchor::sbe;

namespace {

// The exception types live in sheetanchor.sbe, where people look for them; they are fetched when one is raised.
nb::object error_type(const char* name) { return nb::module_::import_("sheetanchor.sbe").attr(name); }

[[noreturn]] void raise(nb::object type, nb::object error) {
  PyErr_SetObject(type.ptr(), error.ptr());
  throw nb::python_error();
}

[[noreturn]] void raise_decode(const sbe::Error& error) {
  auto type = error_type("DecodeError");
  raise(type, type(sbe::name_of(error.kind), error.offset, error.message()));
}

[[noreturn]] void raise_encode(const std::string& message) {
  auto type = error_type("EncodeError");
  raise(type, type(message));
}

// A borrowed view of any object with a contiguous buffer.
class Buffer {
 public:
  explicit Buffer(nb::handle source) {
    if (PyObject_GetBuffer(source.ptr(), &view_, PyBUF_SIMPLE) != 0) throw nb::python_error();
  }
  ~Buffer() { PyBuffer_Release(&view_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  sbe::Bytes bytes() const {
    return {static_cast<const std::uint8_t*>(view_.buf), static_cast<std::size_t>(view_.len)};
  }

 private:
  Py_buffer view_{};
};

sbe::Frame parse(sbe::Bytes bytes) {
  sbe::Frame frame;
  sbe::Error error;
  if (!sbe::parse(bytes, frame, error)) raise_decode(error);
  return frame;
}

nb::str text(std::string_view value) { return nb::str(value.data(), value.size()); }

template <class Make>
nb::object tuple_of(std::uint32_t count, Make make) {
  auto out = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(count)));
  if (!out.is_valid()) throw nb::python_error();
  for (std::uint32_t index = 0; index < count; ++index)
    PyTuple_SET_ITEM(out.ptr(), static_cast<Py_ssize_t>(index), make(index).release().ptr());
  return out;
}

nb::object levels(const sbe::Group& group) {
  return tuple_of(group.count, [&group](std::uint32_t index) {
    const auto level = group.level(index);
    return nb::make_tuple(level.price, level.qty);
  });
}

nb::object trades(const sbe::Group& group) {
  return tuple_of(group.count, [&group](std::uint32_t index) {
    const auto trade = group.trade(index);
    return nb::make_tuple(trade.id, trade.price, trade.qty, trade.is_buyer_maker);
  });
}

// (template id, the arguments of its type in sheetanchor.sbe in their order)
nb::tuple decode(nb::handle source) {
  const Buffer buffer(source);
  const auto frame = parse(buffer.bytes());
  const auto symbol = text(frame.symbol);
  const auto id = frame.template_id;
  if (id == sbe::TRADES)
    return nb::make_tuple(id, nb::make_tuple(frame.event_time_us, symbol, frame.price_exponent, frame.qty_exponent,
                                             frame.transact_time_us, trades(frame.trades), frame.trailing_bytes));
  if (id == sbe::BEST_BID_ASK)
    return nb::make_tuple(id, nb::make_tuple(frame.event_time_us, symbol, frame.price_exponent, frame.qty_exponent,
                                             frame.last_update_id, frame.bid.price, frame.bid.qty, frame.ask.price,
                                             frame.ask.qty, frame.trailing_bytes));
  if (id == sbe::DEPTH_SNAPSHOT)
    return nb::make_tuple(id, nb::make_tuple(frame.event_time_us, symbol, frame.price_exponent, frame.qty_exponent,
                                             frame.last_update_id, levels(frame.bids), levels(frame.asks),
                                             frame.trailing_bytes));
  return nb::make_tuple(id, nb::make_tuple(frame.event_time_us, symbol, frame.price_exponent, frame.qty_exponent,
                                           frame.first_update_id, frame.last_update_id, levels(frame.bids),
                                           levels(frame.asks), frame.trailing_bytes));
}

// (template id, symbol, event time, first id, last id, entries)
nb::tuple validate_frame(nb::handle source) {
  const Buffer buffer(source);
  const auto frame = parse(buffer.bytes());
  std::int64_t first = frame.first_update_id, last = frame.last_update_id;
  std::uint32_t count = frame.bids.count + frame.asks.count;
  if (frame.template_id == sbe::TRADES) {
    count = frame.trades.count;
    first = count ? frame.trades.trade(0).id : 0;
    last = count ? frame.trades.trade(count - 1).id : 0;
  } else if (frame.template_id == sbe::BEST_BID_ASK) {
    count = 1;
  }
  return nb::make_tuple(frame.template_id, text(frame.symbol), frame.event_time_us, first, last, count);
}

template <class T>
T integer(nb::handle value, const std::string& field) {
  constexpr auto low = std::numeric_limits<T>::min();
  constexpr auto high = std::numeric_limits<T>::max();
  const auto expected =
      field + ": expected an integer of " + std::to_string(low) + ".." + std::to_string(high) + ", found ";
  if (!PyIndex_Check(value.ptr())) raise_encode(expected + nb::repr(value).c_str());
  const auto exact = nb::steal(PyNumber_Index(value.ptr()));
  if (!exact.is_valid()) throw nb::python_error();
  int overflow = 0;
  const long long number = PyLong_AsLongLongAndOverflow(exact.ptr(), &overflow);
  if (overflow != 0 || number < low || number > high) raise_encode(expected + nb::repr(value).c_str());
  return static_cast<T>(number);
}

template <class T = std::int64_t>
T integer_of(nb::handle message, const char* field) {
  return integer<T>(message.attr(field), field);
}

// The entries of a group, each checked to be a sequence of `width` items.
template <class Take>
void each_entry(nb::handle message, const char* field, std::size_t width, Take take) {
  const auto group = nb::steal(PySequence_Tuple(nb::object(message.attr(field)).ptr()));
  if (!group.is_valid()) throw nb::python_error();
  const auto count = nb::len(group);
  if (count > sbe::GROUP_COUNT_MAX)
    raise_encode(std::string(field) + ": expected at most " + std::to_string(sbe::GROUP_COUNT_MAX) +
                 " entries, found " + std::to_string(count));
  for (std::size_t index = 0; index < count; ++index) {
    const auto name = std::string(field) + "[" + std::to_string(index) + "]";
    const auto entry = nb::steal(PySequence_Tuple(PyTuple_GET_ITEM(group.ptr(), static_cast<Py_ssize_t>(index))));
    if (!entry.is_valid()) throw nb::python_error();
    if (nb::len(entry) != width)
      raise_encode(name + ": expected " + std::to_string(width) + " items, found " + std::to_string(nb::len(entry)));
    take(nb::borrow<nb::tuple>(entry), name);
  }
}

void take_levels(nb::handle message, const char* field, std::vector<sbe::Level>& out) {
  each_entry(message, field, 2, [&out](const nb::tuple& entry, const std::string& name) {
    out.push_back({integer<std::int64_t>(entry[0], name + " price"), integer<std::int64_t>(entry[1], name + " qty")});
  });
}

void take_trades(nb::handle message, std::vector<sbe::Trade>& out) {
  each_entry(message, "trades", 4, [&out](const nb::tuple& entry, const std::string& name) {
    const nb::object flag = entry[3];
    if (!PyBool_Check(flag.ptr()))
      raise_encode(name + " is_buyer_maker: expected True or False, found " + nb::repr(flag).c_str());
    out.push_back({integer<std::int64_t>(entry[0], name + " id"), integer<std::int64_t>(entry[1], name + " price"),
                   integer<std::int64_t>(entry[2], name + " qty"), flag.ptr() == Py_True});
  });
}

std::string symbol_of(nb::handle message) {
  const nb::object symbol = message.attr("symbol");
  if (!PyUnicode_Check(symbol.ptr()))
    raise_encode(std::string("symbol: expected text, found ") + nb::repr(symbol).c_str());
  Py_ssize_t size = 0;
  const char* utf8 = PyUnicode_AsUTF8AndSize(symbol.ptr(), &size);
  if (utf8 == nullptr) {
    PyErr_Clear();
    raise_encode("symbol: expected text that UTF-8 can hold, found a lone surrogate");
  }
  if (static_cast<std::size_t>(size) > sbe::SYMBOL_BYTES_MAX)
    raise_encode("symbol: expected at most " + std::to_string(sbe::SYMBOL_BYTES_MAX) + " bytes of UTF-8, found " +
                 std::to_string(size));
  return {utf8, static_cast<std::size_t>(size)};
}

nb::bytes encode(std::uint16_t template_id, nb::handle message) {
  sbe::Message out;
  auto& fields = out.fields;
  fields.template_id = template_id;
  fields.event_time_us = integer_of(message, "event_time_us");
  fields.price_exponent = integer_of<std::int8_t>(message, "price_exponent");
  fields.qty_exponent = integer_of<std::int8_t>(message, "qty_exponent");
  out.symbol = symbol_of(message);
  if (template_id == sbe::TRADES) {
    fields.transact_time_us = integer_of(message, "transact_time_us");
    take_trades(message, out.trades);
  } else if (template_id == sbe::DEPTH_DIFF) {
    fields.first_update_id = integer_of(message, "first_update_id");
    fields.last_update_id = integer_of(message, "last_update_id");
  } else {
    fields.last_update_id = integer_of(message, "book_update_id");
  }
  if (template_id == sbe::BEST_BID_ASK) {
    fields.bid = {integer_of(message, "bid_price"), integer_of(message, "bid_qty")};
    fields.ask = {integer_of(message, "ask_price"), integer_of(message, "ask_qty")};
  } else if (template_id != sbe::TRADES) {
    take_levels(message, "bids", out.bids);
    take_levels(message, "asks", out.asks);
  }
  const auto frame = sbe::encode(out);
  return nb::bytes(reinterpret_cast<const char*>(frame.data()), frame.size());
}

using sheetanchor::Market;
using PairList = std::vector<std::pair<std::int64_t, std::int64_t>>;
using TradeList = std::vector<std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, bool>>;
using RangeTuple = std::optional<std::tuple<std::int64_t, std::int64_t, std::int64_t, std::uint32_t>>;

std::vector<sbe::Level> to_levels(const PairList& pairs) {
  std::vector<sbe::Level> out;
  out.reserve(pairs.size());
  for (const auto& [price, qty] : pairs) out.push_back({price, qty});
  return out;
}

nb::list to_list(const std::vector<sbe::Level>& levels) {
  nb::list out;
  for (const auto& level : levels) out.append(nb::make_tuple(level.price, level.qty));
  return out;
}

nb::tuple top(const Market& market, std::size_t depth) {
  return nb::make_tuple(to_list(market.book().bids.best_levels(depth)),
                        to_list(market.book().asks.best_levels(depth)));
}

nb::list flat(const sheetanchor::Fields& fields) {
  nb::list out;
  for (const auto& [name, value] : fields) {
    out.append(text(name));
    out.append(text(value));
  }
  return out;
}

RangeTuple to_tuple(const std::optional<sheetanchor::MissingRange>& range) {
  if (!range) return std::nullopt;
  return std::tuple{range->expected, range->found, range->since_us, range->lines_past};
}

void load_snapshot(Market& market, std::int64_t last_update_id, int price_exponent, int qty_exponent,
                   const PairList& bids, const PairList& asks, std::int64_t stamp_us, std::size_t cut_off) {
  market.load_snapshot(last_update_id, price_exponent, qty_exponent, to_levels(bids), to_levels(asks), stamp_us,
                       cut_off);
}

void seed_trades(Market& market, const TradeList& trades, int price_exponent, int qty_exponent) {
  std::vector<sheetanchor::PastTrade> out;
  out.reserve(trades.size());
  for (const auto& [id, price, qty, time_us, is_buyer_maker] : trades)
    out.push_back({id, price, qty, time_us, is_buyer_maker});
  market.seed_trades(std::move(out), price_exponent, qty_exponent);
}

// `(count, id, event_us, stamp_us, [stamp per line])` of each stream.
nb::dict newest_messages(const Market& market) {
  using sheetanchor::Stream;
  nb::dict out;
  for (const auto& [name, stream] : {std::pair{"trade", Stream::trade}, std::pair{"bestBidAsk", Stream::best},
                                     std::pair{"depth", Stream::depth}}) {
    const auto& message = market.message(stream);
    nb::list lines;
    for (const auto stamp_us : message.line_stamp_us) lines.append(stamp_us);
    out[name] = nb::make_tuple(message.count, message.id, message.event_us, message.stamp_us, lines);
  }
  return out;
}

nb::object last_best(const Market& market) {
  const auto best = market.last_best();
  if (!best) return nb::none();
  return nb::make_tuple(best->first.price, best->second.price);
}

nb::dict counters(const Market& market) {
  const auto& counted = market.counters();
  nb::dict out;
  out["frames"] = counted.frames;
  out["diffs_applied"] = counted.diffs_applied;
  out["diffs_duplicate"] = counted.diffs_duplicate;
  out["diffs_before_book"] = counted.diffs_before_book;
  out["trades_applied"] = counted.trades_applied;
  out["trades_duplicate"] = counted.trades_duplicate;
  out["trades_late"] = counted.trades_late;
  out["bba_applied"] = counted.bba_applied;
  out["bba_stale"] = counted.bba_stale;
  out["depth20_checked"] = counted.depth20_checked;
  out["depth20_mismatches"] = counted.depth20_mismatches;
  out["depth20_ignored"] = counted.depth20_ignored;
  out["foreign_symbol"] = counted.foreign_symbol;
  out["trailing_bytes"] = counted.trailing_bytes;
  out["pending_overflow"] = counted.pending_overflow;
  out["bad_value"] = counted.bad_value;
  for (std::size_t kind = 0; kind < sbe::KIND_COUNT; ++kind)
    out[(std::string("decode_error.") + sbe::KIND_NAMES[kind]).c_str()] = counted.decode_error[kind];
  return out;
}

void bind_market(nb::module_& m) {
  using namespace nb::literals;
  nb::class_<Market>(m, "Market")
      .def(nb::init<std::string>(), "symbol"_a)
      .def(
          "feed",
          [](Market& market, int line, nb::handle batch, std::int64_t stamp_us, std::int64_t stop_at_update_id) {
            const Buffer buffer(batch);
            return market.feed(line, buffer.bytes(), stamp_us, stop_at_update_id);
          },
          "line"_a, "batch"_a, "stamp_us"_a, "stop_at_update_id"_a = 0)
      .def("load_snapshot", &load_snapshot, "last_update_id"_a, "price_exponent"_a, "qty_exponent"_a, "bids"_a,
           "asks"_a, "stamp_us"_a, "cut_off"_a = 0)
      .def("seed_trades", &seed_trades, "trades"_a, "price_exponent"_a, "qty_exponent"_a)
      .def(
          "pack_book",
          [](const Market& market, std::int64_t epoch, std::map<std::string, std::string> line_ids) {
            const auto blob = market.pack_book(epoch, std::move(line_ids));
            return nb::bytes(blob.data(), blob.size());
          },
          "epoch"_a, "line_ids"_a)
      .def(
          "load_book",
          [](Market& market, nb::bytes blob) {
            return market.load_book({static_cast<const char*>(blob.data()), blob.size()});
          },
          "blob"_a)
      .def("skip_depth_gap", &Market::skip_missing_depth)
      .def("skip_trade_gap", &Market::skip_missing_trade_ids)
      .def(
          "hot_state",
          [](const Market& market, std::int64_t now_us) {
            const auto hot = market.hot_state(now_us);
            return nb::make_tuple(flat(hot.ob), flat(hot.tr_1s), flat(hot.tr_5s), flat(hot.feat));
          },
          "now_us"_a)
      .def("top", &top, "depth"_a)
      .def("levels", [](const Market& market) { return top(market, sheetanchor::LEVELS_MAX); })
      .def("known_levels", &Market::known_levels, "depth"_a)
      .def("volume_between", &Market::volume_between, "start_event_us"_a, "end_event_us"_a)
      .def("counters", &counters)
      .def("newest_messages", &newest_messages)
      .def_prop_ro("quoted_best", &last_best)
      .def_prop_ro("clock_steps", &Market::clock_steps)
      .def_prop_ro("misdated_trades", &Market::misdated_trades)
      .def_prop_ro("clock_untrusted", &Market::clock_untrusted)
      .def_prop_ro("best_confirmed", &Market::best_confirmed)
      .def("missing_trades", &Market::missing_trades, "now_us"_a, "span_us"_a)
      .def_prop_ro("depth_gap", [](const Market& market) { return to_tuple(market.missing_depth()); })
      .def_prop_ro("trade_gap", [](const Market& market) { return to_tuple(market.missing_trade_ids()); })
      .def_prop_ro("symbol", &Market::symbol)
      .def_prop_ro("price_exponent", &Market::price_exponent)
      .def_prop_ro("qty_exponent", &Market::qty_exponent)
      .def_prop_ro("update_id", &Market::update_id)
      .def_prop_ro("bba_id", &Market::best_id)
      .def_prop_ro("trade_id", &Market::trade_id)
      .def_prop_ro("last_seen_update_id", &Market::last_seen_update_id)
      .def_prop_ro("event_us", &Market::event_us)
      .def_prop_ro("stamp_us", &Market::stamp_us)
      .def_prop_ro("has_book", &Market::has_book)
      .def_prop_ro("crossed", &Market::crossed)
      .def_prop_ro("cut_off", &Market::cut_off)
      .def_prop_ro("bid_edge", &Market::bid_edge)
      .def_prop_ro("ask_edge", &Market::ask_edge)
      .def_prop_ro("mid", &Market::mid)
      .def_prop_ro("last_trade_price", &Market::last_trade_price);
}

}  // namespace

NB_MODULE(_decoder, m) {
  m.doc() = "Frames to books and windows in C++; `sheetanchor.sbe` is the typed face of its first two functions.";
  m.def("decode", &decode, nb::arg("frame"));
  m.def("encode", &encode, nb::arg("template_id"), nb::arg("message"));
  m.def("validate_frame", &validate_frame, nb::arg("frame"));
  m.attr("TRADES") = sbe::TRADES;
  m.attr("BEST_BID_ASK") = sbe::BEST_BID_ASK;
  m.attr("DEPTH_SNAPSHOT") = sbe::DEPTH_SNAPSHOT;
  m.attr("DEPTH_DIFF") = sbe::DEPTH_DIFF;
  nb::list kinds;
  for (const char* kind : sbe::KIND_NAMES) kinds.append(kind);
  m.attr("ERROR_KINDS") = nb::tuple(kinds);
  bind_market(m);
}
