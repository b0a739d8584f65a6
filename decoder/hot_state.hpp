// The fields of a market's hot keys at a given time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "decimal.hpp"
#include "fields.hpp"
#include "market.hpp"
#include "windows.hpp"

namespace sheetanchor {

// The fields of the hot keys, without `epoch` and `source`. Windows end at the highest event time seen plus the time
// since its frame came; with no event yet they end at `now_us`.
inline HotState Market::hot_state(std::int64_t now_us) const {
  check_time(now_us, "now_us");
  const auto best = best_prices();
  if (!has_book_ || !book_.has_both_sides() || !best) throw std::invalid_argument("Empty order book data");
  const auto end_us = clock_.event_us() < 0 ? now_us : clock_.at(now_us);
  const auto [bid, ask] = *best;
  const auto one = window_stats(history_.trades(), end_us, 1'000'000);
  const auto five = window_stats(history_.trades(), end_us, 5'000'000);
  const auto bids = book_.bids.best_levels(HOT_DEPTH), asks = book_.asks.best_levels(HOT_DEPTH);
  const auto bid_value = value_sum(bids), ask_value = value_sum(asks);
  const int value_exponent = price_exponent_ + qty_exponent_;
  const auto imbalance =
      shortest(static_cast<double>(bid_value - ask_value) / static_cast<double>(bid_value + ask_value));
  const auto spread_bp =
      shortest(static_cast<double>(ask.price - bid.price) / static_cast<double>(bid.price) * 10000);
  const auto update_id = std::to_string(update_id_);

  HotState hot;
  hot.ob = {
      {"best_bid", decimal(bid.price, price_exponent_)},
      {"best_ask", decimal(ask.price, price_exponent_)},
      {"spread", shortest(scaled(ask.price - bid.price, price_exponent_))},
      {"spread_bp", spread_bp},
  };
  level_fields(hot.ob, bids, "bid", price_exponent_, qty_exponent_);
  level_fields(hot.ob, asks, "ask", price_exponent_, qty_exponent_);
  hot.ob.insert(hot.ob.end(), {{"bid_value_sum", shortest(scaled(bid_value, value_exponent))},
                               {"ask_value_sum", shortest(scaled(ask_value, value_exponent))},
                               {"ob_imbalance", imbalance},
                               {"ts_us", std::to_string(book_event_us_ < 0 ? stamp_us() : book_event_us_)},
                               {"update_id", update_id},
                               {"last_update_id", update_id},
                               {"bba_id", std::to_string(std::max<std::int64_t>(best_id_, 0))}});
  hot.tr_1s = window_fields(one, price_exponent_, qty_exponent_, 1, mid());
  hot.tr_5s = window_fields(five, price_exponent_, qty_exponent_, 5, mid());
  const double balance =
      five.count > 0 ? static_cast<double>(five.signed_volume) / static_cast<double>(five.volume) : 0;
  hot.feat = {{"ret_1s", shortest(mid_return(end_us, 1'000'000))},
              {"ret_5s", shortest(mid_return(end_us, 5'000'000))},
              {"vol_imbalance", shortest(balance)},
              {"spread_bp", spread_bp},
              {"ob_imbalance", imbalance},
              {"trade_intensity", shortest(static_cast<double>(five.count) / 5)},
              {"ts", std::to_string(end_us / 1'000'000)}};
  return hot;
}

}  // namespace sheetanchor
