//! Whether a release that was proved goes on being well. Pure: it judges what is seen, and the time comes with it.
//!
//! ```text
//!  Well ── it ended, or often did not answer ──▶ Shaken ── it ended again, or is not well in time ──▶ Broken
//!   ▲                                                    │                                                  │
//!   └───────────── well without a break for a while ─────┴──────────────────────────────────────────────────┘
//! ```
//!
//! Shaken is reported as *Starting*: a rollout waits, and its bake time begins anew. Broken is reported as *Failed*: it counts
//! against the rollout's failure budget. In all of it the service's shim starts it again and again, with longer waits.
//!
//! A proved release is never rolled back by the node itself, be it minutes or months later: that it worked says that the cause may lie
//! elsewhere, and a fleet that goes back by itself all at once is worse than one that says it is broken. People and
//! rollouts decide.
//!
//! A release that flaps is not believed at once: each relapse doubles the time for which it must be well, up to five minutes.

use std::time::Duration;

use longshore_schemas::events::{HealthCheck, NodeStatus};

/// Since any fixed moment.
pub type Time = Duration;

/// Ends since it was well that make it broken.
const ENDS_MAX: u32 = 2;
/// How long it must be well to count as well again, at first and at most.
const STEADY_MIN: Duration = Duration::from_secs(10);
const STEADY_MAX: Duration = Duration::from_secs(300);
/// A release that was well for so long begins with the short time again.
const CALM: Duration = Duration::from_secs(3_600);

/// What is seen of a release at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// `None`: its shim's word cannot be read just now, which says nothing of the service.
    pub process: Option<Process>,
    /// What its health check says; `None` if it was not asked this time.
    pub answer: Option<Result<(), String>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Process {
    /// The shim's process, and how often the service ended under it.
    pub shim: u32,
    pub exits: u32,
    pub running: bool,
    /// How it ended last.
    pub last_exit: Option<String>,
}

impl Seen {
    fn is_down(&self) -> bool {
        self.process.as_ref().is_some_and(|process| !process.running)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Well,
    Shaken,
    Broken,
}

impl Condition {
    pub fn status(self) -> NodeStatus {
        match self {
            Self::Well => NodeStatus::Healthy,
            Self::Shaken => NodeStatus::Starting,
            Self::Broken => NodeStatus::Failed,
        }
    }
}

/// See the module. A new one for each release that was proved, and for each start of the agent.
#[derive(Debug)]
pub struct Watch {
    condition: Condition,
    /// Why it is not well; does not change while the condition does not.
    reason: Option<String>,
    seen: Option<(u32, u32)>,
    /// Since it was well.
    ends: u32,
    missed: u32,
    last_missed: Option<String>,
    left_well_at: Time,
    good_since: Option<Time>,
    well_since: Option<Time>,
    steady: Duration,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            condition: Condition::Well,
            reason: None,
            seen: None,
            ends: 0,
            missed: 0,
            last_missed: None,
            left_well_at: Time::ZERO,
            good_since: None,
            well_since: None,
            steady: STEADY_MIN,
        }
    }
}

impl Watch {
    pub fn condition(&self) -> Condition {
        self.condition
    }

    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Judges; `true` if the condition is another than before.
    pub fn see(&mut self, seen: &Seen, check: &HealthCheck, now: Time) -> bool {
        let before = self.condition;
        let ended = self.ends_since(seen);
        self.ends = self.ends.saturating_add(ended);
        match &seen.answer {
            Some(Err(reason)) => {
                self.missed = self.missed.saturating_add(1);
                self.last_missed = Some(reason.clone());
            }
            Some(Ok(())) => self.missed = 0,
            None => {}
        }
        let bad = ended > 0 || seen.is_down() || self.missed > 0;
        self.good_since = if bad { None } else { self.good_since.or(Some(now)) };
        match self.condition {
            Condition::Well => {
                let since = *self.well_since.get_or_insert(now);
                if ended > 0 || seen.is_down() || self.missed >= check.failures.max(1) {
                    self.relapse(now, since);
                    self.turn(Condition::Shaken, seen);
                }
            }
            Condition::Shaken | Condition::Broken => {
                let deadline = Duration::from_secs(check.deadline_seconds.max(1).into());
                let late = self.good_since.is_none() && now >= self.left_well_at + deadline;
                if self.good_since.is_some_and(|since| now >= since + self.steady) {
                    (self.well_since, self.ends) = (Some(now), 0);
                    self.turn(Condition::Well, seen);
                } else if self.condition == Condition::Shaken && (self.ends >= ENDS_MAX || late) {
                    self.turn(Condition::Broken, seen);
                }
            }
        }
        self.condition != before
    }

    /// How often it ended since it was seen last. Another shim means that the one before was lost, with what it ran.
    fn ends_since(&mut self, seen: &Seen) -> u32 {
        let Some(process) = &seen.process else { return 0 };
        let before = self.seen.replace((process.shim, process.exits));
        before.map_or(0, |(shim, exits)| if shim == process.shim { process.exits.saturating_sub(exits) } else { 1 })
    }

    fn relapse(&mut self, now: Time, well_since: Time) {
        let flaps = self.left_well_at > Time::ZERO && now < well_since + CALM;
        self.steady = if flaps { (self.steady * 2).min(STEADY_MAX) } else { STEADY_MIN };
        self.left_well_at = now;
    }

    fn turn(&mut self, condition: Condition, seen: &Seen) {
        self.condition = condition;
        self.reason = match condition {
            Condition::Well => None,
            _ if self.ends > 0 || seen.is_down() => {
                let how = seen.process.as_ref().and_then(|process| process.last_exit.as_deref());
                let how = how.unwrap_or("nobody saw how");
                Some(format!("it was healthy and then ended: {how}; it is started again"))
            }
            _ => {
                let how = self.last_missed.as_deref().unwrap_or("it does not answer");
                Some(format!("it was healthy and is not any more: {how}"))
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Condition::{Broken, Shaken, Well};

    fn check() -> HealthCheck {
        let check = HealthCheck { http_path: "/".into(), successes: 1, interval_ms: 1_000, ..HealthCheck::default() };
        HealthCheck { deadline_seconds: 30, ..check }
    }

    /// A service of which one letter a second is seen: `.` answers, `x` does not, `!` ended and runs again, `_` does not
    /// run, of `?` its shim says nothing.
    struct Run {
        watch: Watch,
        now: u64,
        exits: u32,
        turns: Vec<(u64, Condition)>,
    }

    impl Run {
        fn new() -> Self {
            Self { watch: Watch::default(), now: 1_000, exits: 0, turns: Vec::new() }
        }

        fn see(&mut self, letters: &str) -> &mut Self {
            for letter in letters.chars() {
                self.now += 1;
                self.exits += u32::from(letter == '!');
                let answer = if matches!(letter, '.' | '!' | '?') { Ok(()) } else { Err("/ answered 500".to_owned()) };
                let running = letter != '_';
                let last_exit = (self.exits > 0).then(|| "exit status: 1".to_owned());
                let process = Process { shim: 1, exits: self.exits, running, last_exit };
                let process = (letter != '?').then_some(process);
                let seen = Seen { process, answer: Some(answer) };
                if self.watch.see(&seen, &check(), Duration::from_secs(self.now)) {
                    self.turns.push((self.now, self.watch.condition()));
                }
            }
            self
        }

        fn conditions(&self) -> Vec<Condition> {
            self.turns.iter().map(|(_, condition)| *condition).collect()
        }
    }

    #[test]
    fn what_is_seen_makes_the_condition() {
        let steady = ".".repeat(12);
        let table = [
            ("......", vec![]),
            ("..xx..xx..", vec![]),
            ("..xxx.", vec![Shaken]),
            ("..!...", vec![Shaken]),
            ("__", vec![Shaken]),
            ("..????..", vec![]),
            ("..??!", vec![Shaken]),
            (&format!("..!{steady}"), vec![Shaken, Well]),
            ("..!..!", vec![Shaken, Broken]),
            (&format!("..!.!.!{steady}"), vec![Shaken, Broken, Well]),
            (&format!("..{}", "x".repeat(40)), vec![Shaken, Broken]),
            (&format!("..{}{steady}", "x".repeat(40)), vec![Shaken, Broken, Well]),
        ];
        for (letters, expected) in table {
            assert_eq!(Run::new().see(letters).conditions(), expected, "{letters}");
        }
    }

    #[test]
    fn it_says_why() {
        let mut run = Run::new();
        let reason = run.see("..!").watch.reason().expect("it is not well").to_owned();
        assert!(reason.contains("exit status: 1"), "{reason}");
        let mut run = Run::new();
        let reason = run.see("..xxx").watch.reason().expect("it is not well").to_owned();
        assert!(reason.contains("/ answered 500"), "{reason}");
        assert_eq!(run.see(&".".repeat(12)).watch.reason(), None);
    }

    #[test]
    fn one_that_flaps_is_reported_less_and_less() {
        let mut run = Run::new();
        // It lives for a quarter of a minute each time, for an hour.
        for _ in 0..240 {
            run.see("!").see(&".".repeat(14));
        }
        assert!(run.turns.len() < 8, "{:?}", run.turns);
        // Left alone it recovers, and after a calm hour begins anew.
        run.see(&".".repeat(301));
        assert_eq!(run.watch.condition(), Well);
        run.see(&".".repeat(3_700)).see("!").see(&".".repeat(12));
        assert_eq!(run.watch.condition(), Well, "{:?}", run.turns.last());
    }

    #[test]
    fn a_lost_shim_is_an_end() {
        let mut watch = Watch::default();
        let process = |shim| Process { shim, exits: 0, running: true, last_exit: None };
        let seen = |shim| Seen { process: Some(process(shim)), answer: Some(Ok(())) };
        assert!(!watch.see(&seen(1), &check(), Duration::from_secs(1)));
        assert!(watch.see(&seen(2), &check(), Duration::from_secs(2)));
        assert_eq!(watch.condition(), Shaken);
    }
}
