//! Whether a release that was just started is healthy, has failed, or is to be asked again. Pure: time and answers come with
//! the call.

use std::time::Duration;

use longshore_schemas::events::HealthCheck;

/// A release that ended so often before it was healthy has failed.
const EXITS_MAX: u32 = 2;

/// Since the release was started.
pub type Time = Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Ask again after the check's interval.
    Open,
    Healthy,
    /// Why.
    Failed(String),
}

/// See the module. A new one for each start.
#[derive(Debug)]
pub struct Trial<'a> {
    check: &'a HealthCheck,
    exits: u32,
    /// When the process that runs now was first seen.
    process_since: Time,
    successes: u32,
    /// Those in a row that count.
    failures: u32,
}

impl<'a> Trial<'a> {
    pub fn new(check: &'a HealthCheck) -> Self {
        Self { check, exits: 0, process_since: Time::ZERO, successes: 0, failures: 0 }
    }

    /// The process ended so often since the start, the last time like this.
    pub fn ended(&mut self, exits: u32, how: &str, now: Time) -> Verdict {
        if exits >= EXITS_MAX {
            return Verdict::Failed(format!("the service ended {exits} times: {how}"));
        }
        if exits != self.exits {
            // What counted was another process.
            (self.exits, self.process_since, self.successes, self.failures) = (exits, now, 0, 0);
        }
        Verdict::Open
    }

    /// What a check said.
    pub fn answered(&mut self, answer: Result<(), String>, now: Time) -> Verdict {
        let check = self.check;
        let Err(reason) = answer else {
            (self.successes, self.failures) = (self.successes + 1, 0);
            let is_healthy = self.successes >= check.successes.max(1);
            return if is_healthy {
                Verdict::Healthy
            } else {
                self.in_time("it was healthy for too short a time", now)
            };
        };
        self.successes = 0;
        let grace = check.grace_seconds.map(|seconds| Duration::from_secs(seconds.into()));
        if grace.is_some_and(|grace| now >= self.process_since + grace) {
            self.failures += 1;
        }
        if self.failures >= check.failures.max(1) {
            return Verdict::Failed(format!("{} health checks in a row failed: {reason}", self.failures));
        }
        self.in_time(&reason, now)
    }

    /// Open, unless the next check would be too late.
    fn in_time(&self, last: &str, now: Time) -> Verdict {
        let deadline = Duration::from_secs(self.check.deadline_seconds.max(1).into());
        if now + interval(self.check) > deadline {
            return Verdict::Failed(format!("not healthy within {} s: {last}", deadline.as_secs()));
        }
        Verdict::Open
    }
}

/// Between two checks.
pub fn interval(check: &HealthCheck) -> Duration {
    Duration::from_millis(check.interval_ms.clamp(10, 60_000).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One letter a second: `.` answers, `x` does not, `!` is a new process that does not answer yet. What came of it, and when.
    fn judged(check: &HealthCheck, letters: &str) -> Option<(u64, Verdict)> {
        let (mut trial, mut exits) = (Trial::new(check), 0);
        for (second, letter) in (0..).zip(letters.chars()) {
            let now = Duration::from_secs(second);
            exits += u32::from(letter == '!');
            let answer = if letter == '.' { Ok(()) } else { Err("refused".to_owned()) };
            let verdict = match trial.ended(exits, "exit status: 1", now) {
                Verdict::Open => trial.answered(answer, now),
                verdict => verdict,
            };
            if verdict != Verdict::Open {
                return Some((second, verdict));
            }
        }
        None
    }

    #[test]
    fn answers_make_the_verdict() {
        let base = HealthCheck { interval_ms: 1_000, deadline_seconds: 10, ..HealthCheck::default() };
        let grace = |seconds| HealthCheck { grace_seconds: Some(seconds), ..base.clone() };
        let failed = |text: &str| Some(text.to_owned());
        let table = [
            (base.clone(), "..", 1, None),
            (base.clone(), "xxxxx..", 6, None),
            (base.clone(), "x.x.x..", 6, None),
            (base.clone(), ".!..", 3, None),
            (base.clone(), "xxxxxxxxxx", 10, failed("not healthy within 10 s: refused")),
            (base.clone(), "!x!", 2, failed("the service ended 2 times: exit status: 1")),
            (grace(0), "xxx", 2, failed("3 health checks in a row failed: refused")),
            (grace(0), "xx.xx..", 6, None),
            (grace(4), "xxxxxxx", 6, failed("3 health checks in a row failed: refused")),
            (grace(4), "xxxx!xxx..", 9, None),
        ];
        for (check, letters, second, failure) in table {
            let expected = failure.map_or(Verdict::Healthy, Verdict::Failed);
            // The last check of a deadline is that after which there is no time for another.
            let letters = format!("{letters}x");
            let (at, verdict) = judged(&check, &letters).expect(&letters);
            assert_eq!((at, verdict), (second, expected), "{letters} {:?}", check.grace_seconds);
        }
    }
}
