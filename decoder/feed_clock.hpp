// The exchange's clock as the feed shows it: the newest event time that can be believed, and when its frame came.
//
// One event time far ahead must not move everything that is dated by it, and a clock that has really been set must be
// followed. So an event time is compared with the newest one plus the time that has passed since that one came. What
// lies beyond is held back until frames agree on it for a while and none contradicts them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>

namespace sheetanchor {

class FeedClock {
 public:
  // How far an event time may be off once events and arrivals are known to go at the same pace.
  static constexpr std::int64_t SLACK_US = 1'000'000;
  // Before that, and where stamps stand still, it may be ahead by more than the history that it would end, and behind
  // by what one line may be late.
  static constexpr std::int64_t UNPACED_AHEAD_US = 150'000'000, UNPACED_BEHIND_US = 10'000'000;
  // What it takes to believe that the clock was set: so many frames in a row over so long, by either clock, whose
  // distances from their arrivals differ by no more than this.
  static constexpr int AGREEING_FRAMES = 4;
  static constexpr std::int64_t AGREEING_FOR_US = 1'000'000, AGREEING_WITHIN_US = 10'000'000;
  // Times that are far behind without having gone back may be those of a feed that is late, or a wrong time was followed
  // that no message of theirs has had. Only when nothing else has come for this long are they the clock's, or it would
  // stay wrong for ever.
  static constexpr std::int64_t BEHIND_FOR_US = 5'000'000;
  // What nothing has agreed with for this long is forgotten when something else comes.
  static constexpr std::int64_t DOUBT_KEPT_US = 10'000'000;
  // Over how long the pace is measured.
  static constexpr std::int64_t PACE_US = 2'000'000;

  std::int64_t event_us() const { return event_us_; }
  std::int64_t stamp_us() const { return stamp_us_; }

  void begin(std::int64_t event_us, std::int64_t stamp_us) {
    *this = FeedClock{};
    event_us_ = mark_event_us_ = event_us;
    stamp_us_ = mark_stamp_us_ = stamp_us;
    lead_us_ = event_us - stamp_us;
  }

  // What the exchange's clock shows at a time of the arrival clock: it never goes back.
  std::int64_t at(std::int64_t now_us) const { return event_us_ + std::max<std::int64_t>(0, now_us - stamp_us_); }

  // The time to date a change by that a frame has brought: its own, unless that is not believed (yet).
  std::int64_t date(std::int64_t event_us, std::int64_t stamp_us) const {
    const bool believed = event_us <= event_us_ && event_us_ - event_us <= behind_us();
    return believed ? event_us : at(stamp_us);
  }

  // Whether the frame noted last is the first of those that may show that the clock was set.
  bool begins_to_doubt() const { return agreeing_ == 1; }

  bool doubts() const { return agreeing_ > 0; }

  // Takes the event time of a frame. `is_news`: the frame brings an id beyond all before; a late copy says nothing of the
  // clock. `goes_back`: and its own stream's times have gone back. Answers by how much the clock was found to have been
  // set, 0 nearly always.
  std::int64_t note(std::int64_t event_us, std::int64_t stamp_us, bool is_news, bool goes_back) {
    if (event_us_ < 0) {
      begin(event_us, stamp_us);
      return 0;
    }
    if (event_us > event_us_) {
      // What makes up for being late runs ahead too, but comes no sooner after its event than others have.
      const bool catches_up = keeps_pace_ && event_us - stamp_us <= lead_us_ + SLACK_US;
      // A line that is read after another brings what came before: the clock showed less then.
      const auto shown_us = keeps_pace_ ? event_us_ + stamp_us - stamp_us_ : at(stamp_us);
      const bool ahead = event_us - shown_us > (keeps_pace_ ? SLACK_US : UNPACED_AHEAD_US);
      if (ahead && !catches_up) return is_news ? doubt(event_us, stamp_us, AGREEING_FOR_US) : 0;
      agreeing_ = 0;
      advance(event_us, stamp_us);
      return 0;
    }
    if (is_news && goes_back) return doubt(event_us, stamp_us, AGREEING_FOR_US);
    if (event_us_ - event_us <= behind_us()) {
      agreeing_ = 0;
      return 0;
    }
    if (!is_news) return 0;
    if (event_us_ - event_us > UNPACED_BEHIND_US) return doubt(event_us, stamp_us, BEHIND_FOR_US);
    if (agreeing_ > 0 && stamp_us - agreed_us_ > DOUBT_KEPT_US) agreeing_ = 0;
    return 0;
  }

 private:
  std::int64_t behind_us() const { return keeps_pace_ ? SLACK_US : UNPACED_BEHIND_US; }

  void advance(std::int64_t event_us, std::int64_t stamp_us) {
    event_us_ = event_us;
    stamp_us_ = stamp_us;
    lead_us_ = std::max(lead_us_, event_us - stamp_us);
    const auto passed_us = event_us - mark_event_us_;
    if (passed_us < PACE_US) return;
    keeps_pace_ = std::abs(passed_us - (stamp_us - mark_stamp_us_)) <= SLACK_US;
    mark_event_us_ = event_us;
    mark_stamp_us_ = stamp_us;
  }

  std::int64_t doubt(std::int64_t event_us, std::int64_t stamp_us, std::int64_t for_us) {
    const auto lead_us = event_us - stamp_us;
    if (agreeing_ == 0 || std::abs(lead_us - doubted_event_us_ + doubted_stamp_us_) > AGREEING_WITHIN_US) {
      agreeing_ = 0;
      doubted_event_us_ = event_us;
      doubted_stamp_us_ = stamp_us;
    }
    agreed_us_ = stamp_us;
    const auto lasts_us = std::max(event_us - doubted_event_us_, stamp_us - doubted_stamp_us_);
    if (++agreeing_ < AGREEING_FRAMES || lasts_us < for_us) return 0;
    const auto set_by_us = event_us - at(stamp_us);
    begin(event_us, stamp_us);
    return set_by_us;
  }

  std::int64_t event_us_ = -1, stamp_us_ = 0;
  std::int64_t mark_event_us_ = -1, mark_stamp_us_ = 0;
  std::int64_t lead_us_ = 0;  // the largest event time less arrival
  bool keeps_pace_ = false;
  int agreeing_ = 0;
  std::int64_t doubted_event_us_ = 0, doubted_stamp_us_ = 0;  // of the first frame that agrees
  std::int64_t agreed_us_ = 0;                                // arrival of the last one
};

}  // namespace sheetanchor
