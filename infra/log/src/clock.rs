//! The time of this process: what the log stamps, and what leases and deadlines are counted by.
//!
//! ```text
//! wall clock ────┐ (may jump: a person sets it, NTP steps it)
//!                ├──▶ Steady ──▶ never back, never a jump; towards the wall at a fiftieth of real time at most
//! monotonic ─────┘ (real time, without a date)
//! ```
//!
//! A wall clock that jumps an hour forward would end every lease at once, and one that jumps back would let none end. So the
//! wall clock is believed once, when the process starts, and after that only followed: a lease of 60 s lasts 58.8 to 61.2 s
//! whatever happens to the wall clock, and an hour is made good in two days. What is off by less than a fiftieth of the
//! time since it was last looked at is simply right.
//!
//! A process whose wall clock is behind what was written before ([`begin_after`]), and a leader whose predecessor's clock was
//! ahead ([`Steady::from_time`]), start with what was written last and go on from there. Were time to stand there until the
//! wall clock has caught up, no deadline would come meanwhile.

use std::{
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use longshore_schemas::Timestamp;

/// What time it is.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Real time gains or loses at most one part in so many while it follows the wall clock.
const SLEW: u32 = 50;

/// Goes with real time, and slowly towards the wall clock. Pure: both clocks are read by its owner.
#[derive(Debug, Clone, Default)]
pub struct Steady {
    /// Since 1970.
    now: Duration,
    /// The monotonic clock when that was.
    monotonic: Duration,
}

impl Steady {
    pub fn new(start: Duration, monotonic: Duration) -> Self {
        Self { now: start, monotonic }
    }

    /// As [`Steady::new`], with the time that it starts with.
    pub fn from_time(start: Timestamp, monotonic: Duration) -> Self {
        Self::new(duration(start), monotonic)
    }

    /// As [`Steady::read`], with times.
    pub fn read_at(&mut self, wall: Timestamp, monotonic: Duration) -> Timestamp {
        timestamp(self.read(duration(wall), monotonic))
    }

    /// The time, given what the two clocks show. A monotonic clock that goes back, as it must not, stands still instead.
    pub fn read(&mut self, wall: Duration, monotonic: Duration) -> Duration {
        let passed = monotonic.saturating_sub(self.monotonic);
        self.monotonic = self.monotonic.max(monotonic);
        let (expected, slew) = (self.now + passed, passed / SLEW);
        self.now = wall.clamp(expected - slew, expected + slew);
        self.now
    }
}

struct Process {
    started: Instant,
    steady: Mutex<Steady>,
}

static PROCESS: LazyLock<Process> =
    LazyLock::new(|| Process { started: Instant::now(), steady: Mutex::new(Steady::new(wall(), Duration::ZERO)) });

/// This process's time. All that its parts write and wait for is counted by it.
pub fn now() -> Timestamp {
    let mut steady = PROCESS.steady.lock().unwrap_or_else(PoisonError::into_inner);
    timestamp(steady.read(wall(), PROCESS.started.elapsed()))
}

/// Lets this process's time begin no earlier than what an earlier process wrote: for whoever opens what was written, before
/// anything is counted by it.
pub fn begin_after(written: Timestamp) {
    let mut steady = PROCESS.steady.lock().unwrap_or_else(PoisonError::into_inner);
    let passed = PROCESS.started.elapsed();
    let now = timestamp(steady.read(wall(), passed));
    if now < written {
        tracing::warn!(%written, %now, "the machine's clock is behind what was written; time goes on from there");
        *steady = Steady::new(duration(written), passed);
    }
}

/// [`now`], for those who are told their clock.
pub fn system_clock() -> Clock {
    Arc::new(now)
}

fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn timestamp(since_1970: Duration) -> Timestamp {
    Timestamp::from_millis(i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX))
}

fn duration(time: Timestamp) -> Duration {
    time.since(Timestamp::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    /// Milliseconds, from a start that is far from 1970.
    const START: i64 = 1_700_000_000_000;

    fn millis(millis: i64) -> Duration {
        Duration::from_millis(u64::try_from(millis).expect("not negative"))
    }

    #[test]
    fn time_is_real_time_and_follows_the_wall_slowly() {
        // Wall and monotonic clock (both from the start, in ms), and the time that is shown.
        type Rows = &'static [(i64, i64, i64)];
        let table: [(&str, Rows); 6] = [
            ("clocks that agree", &[(0, 0, 0), (10, 10, 10), (60_000, 60_000, 60_000)]),
            (
                "a small correction is taken over",
                &[(1_000, 1_000, 1_000), (2_019, 2_000, 2_019), (2_951, 3_000, 2_999)],
            ),
            (
                "an hour forward: a minute is at most 61.2 s, and time never stands",
                &[(1_000, 1_000, 1_000), (HOUR + 1_000, 1_000, 1_000), (HOUR + 61_000, 61_000, 62_200)],
            ),
            (
                "an hour forward and soon back: nearly nothing happened",
                &[(1_000, 1_000, 1_000), (HOUR + 11_000, 11_000, 11_200), (31_000, 31_000, 31_000)],
            ),
            (
                "an hour back: time goes on, a fiftieth slower",
                &[(HOUR, HOUR, HOUR), (0, HOUR, HOUR), (60_000, HOUR + 60_000, HOUR + 58_800)],
            ),
            (
                "an hour is made good in two days",
                &[(HOUR, 0, 0), (26 * HOUR, 25 * HOUR, 25 * HOUR + HOUR / 2), (51 * HOUR, 50 * HOUR, 51 * HOUR)],
            ),
        ];
        for (what, rows) in table {
            let mut steady = Steady::new(millis(START), Duration::ZERO);
            for (wall, monotonic, expected) in rows {
                let shown = steady.read(millis(START + wall), millis(*monotonic));
                assert_eq!(shown, millis(START + expected), "{what}: wall {wall}, monotonic {monotonic}");
            }
        }
    }

    #[test]
    fn however_often_it_is_asked_time_is_the_same() {
        let mut steady = Steady::new(millis(START), Duration::ZERO);
        let mut shown = Duration::ZERO;
        for step in 1..=6_000 {
            let before = shown;
            shown = steady.read(millis(START + HOUR + step * 10), millis(step * 10));
            assert!(shown > before);
        }
        assert_eq!(shown, millis(START + 61_200));
        assert_eq!(
            steady.read(millis(START), millis(50_000)),
            shown,
            "a monotonic clock that goes back is not followed"
        );
    }

    #[test]
    fn a_successor_goes_on_from_what_was_written_last() {
        let mut behind = Steady::from_time(Timestamp(START + HOUR), Duration::ZERO);
        for (passed, shown, what) in [
            (0, HOUR, "time does not go back"),
            (60_000, HOUR + 58_800, "deadlines come due"),
            (60 * HOUR, 60 * HOUR, "the clock has caught up"),
        ] {
            assert_eq!(behind.read_at(Timestamp(START + passed), millis(passed)), Timestamp(START + shown), "{what}");
        }
    }

    #[test]
    fn the_process_has_one_time_and_it_never_goes_back() {
        let (one, two) = (now(), system_clock()());
        assert!(one <= two && wall().abs_diff(duration(two)) < Duration::from_secs(60));
    }
}
