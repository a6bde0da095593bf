//! Which artifacts are kept, and why; all others are retired once their time is up.
//!
//! ```text
//! needed by a service (its goal, what it runs, what it may go back to, what it was rolled back from) ─▶ pinned: kept
//! a person wants it                                                                                  ─▶ kept
//! among the newest `keep_last` of one of its names, as far as this partition knows                    ─▶ kept
//! built within `keep_for`                                                                            ─▶ kept
//! none of these                                                                                      ─▶ ArtifactRetired
//! ```
//!
//! A leader looks at all that are old enough, oldest first, some at a time, again and again. An artifact's partition sees only the
//! artifacts that fall on it, so of a name each partition keeps the newest `keep_last`: those that are the newest of all are among
//! them. What of a retired artifact lies in buckets is for others to collect.

use std::{ops::ControlFlow, time::Duration};

use longshore_planted::{Bug, planted};
use longshore_processor::{Decision, Order, Range, StateError, Store};
use longshore_schemas::{
    ArtifactId, ArtifactName, ServiceName, Timestamp,
    events::{ArtifactFact, ArtifactRetired},
};

use crate::{
    Replication,
    tables::{self, Artifact, KEPT, LIVE, NAMES, PINS, Status},
};

/// Artifacts that are retired in one look, so that a clock or a setting that is wrong does less harm before somebody sees it, and regions
/// can remember all until they are collected.
const RETIRED_MAX: usize = 64;
/// Artifacts that are looked at before others have their turn.
const LOOKED_AT_MAX: usize = 500;
/// Until a look goes on.
const PAUSE: Duration = Duration::from_millis(100);

/// What is kept of each name, whether anybody needs it or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// The first that fits a name holds for it.
    pub rules: Vec<Rule>,
    pub otherwise: Keep,
    /// Between the beginnings of two looks.
    pub look_every: Duration,
}

/// Of some names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// A name, in which `*` stands for anything.
    pub name: String,
    pub keep: Keep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// So many of the newest, whatever their age.
    pub last: u32,
    /// Those that were built so lately.
    pub lately: Duration,
}

impl Keep {
    /// For ever.
    pub const EVERYTHING: Self = Self { last: u32::MAX, lately: Duration::MAX };
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Default for Keep {
    fn default() -> Self {
        Self { last: 10, lately: 30 * DAY }
    }
}

impl Default for Retention {
    /// Nothing is retired.
    fn default() -> Self {
        Self { rules: Vec::new(), otherwise: Keep::EVERYTHING, look_every: Duration::from_secs(10 * 60) }
    }
}

impl Retention {
    pub fn of(&self, name: &ArtifactName) -> Keep {
        let rule = self.rules.iter().find(|rule| fits(&rule.name, name.as_str()));
        rule.map_or(self.otherwise, |rule| rule.keep)
    }

    fn shortest(&self) -> Duration {
        let all = self.rules.iter().map(|rule| rule.keep).chain([self.otherwise]);
        all.map(|keep| keep.lately).min().unwrap_or_default()
    }

    /// Why an artifact that is not retired is kept, the strongest reason first; `None` if nothing keeps it.
    pub fn keeps(
        &self,
        state: &dyn Store,
        id: ArtifactId,
        artifact: &Artifact,
        now: Timestamp,
    ) -> Result<Option<Kept>, StateError> {
        if let Some(((_, service), _)) = PINS.first(state, &Range::prefix(&id), Order::Ascending)?
            && !planted(Bug::RetirePinned)
        {
            return Ok(Some(Kept::Pinned(service)));
        }
        if let Some(wish) = KEPT.get(state, &id)? {
            return Ok(Some(Kept::Wanted { by: wish.by, reason: wish.reason }));
        }
        for ((_, name), built_at) in NAMES.list(state, &Range::prefix(&id), Order::Ascending, usize::MAX)? {
            if is_among_newest(state, id, &name, self.of(&name).last)? {
                return Ok(Some(Kept::Newest(name)));
            }
            let until = built_at + self.of(&name).lately;
            if now < until {
                return Ok(Some(Kept::Young { until }));
            }
        }
        // Under this name it was built last; the row of the name says the same.
        let until = artifact.built_at + self.of(&artifact.summary.name).lately;
        Ok((now < until).then_some(Kept::Young { until }))
    }

    /// Whether the artifact has lived half of its time: built again, it is as young as any other.
    pub(crate) fn is_worn(&self, artifact: &Artifact, name: &ArtifactName, now: Timestamp) -> bool {
        now.since(artifact.built_at).saturating_mul(2) >= self.of(name).lately
    }
}

/// Why an artifact is not retired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// This service needs it, perhaps among others.
    Pinned(ServiceName),
    Wanted {
        by: String,
        reason: String,
    },
    /// It is among the newest of this name.
    Newest(ArtifactName),
    Young {
        until: Timestamp,
    },
}

fn is_among_newest(state: &dyn Store, id: ArtifactId, name: &ArtifactName, last: u32) -> Result<bool, StateError> {
    if last == 0 || last == Keep::EVERYTHING.last {
        return Ok(last > 0);
    }
    let last = usize::try_from(last).unwrap_or(usize::MAX);
    let (mut newer, mut found) = (0, false);
    tables::BY_NAME.scan(state, &Range::prefix(name), Order::Descending, |(_, _, artifact), ()| {
        found = artifact == id;
        newer += 1;
        if found || newer >= last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(found)
}

/// Whether the name fits, in which `*` stands for anything.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((begin, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut left) = name.strip_prefix(begin) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.ends_with(end)
}

/// How far a leader's look is.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// When it goes on; `None` before the first.
    at: Option<Timestamp>,
    /// When the one that is under way began, and what it looked at last.
    under_way: Option<(Timestamp, Option<(Timestamp, ArtifactId)>)>,
}

impl Replication {
    pub(crate) fn next_look(&self, look: &mut Look, now: Timestamp) -> Timestamp {
        *look.at.get_or_insert(now + self.config.retention.look_every)
    }

    /// Some of what has had its time. Until nothing is decided, there is more.
    pub(crate) fn retire(
        &self,
        state: &dyn Store,
        look: &mut Look,
        now: Timestamp,
    ) -> Result<Decision<ArtifactFact>, StateError> {
        if look.at.is_none_or(|at| now < at) {
            return Ok(Decision::nothing());
        }
        let retention = &self.config.retention;
        let (begun, after) = look.under_way.take().unwrap_or((now, None));
        let range = after.as_ref().map_or(Range::all(), |after| Range::all().from(after));
        let (mut due, mut last, mut looked_at, mut error) = (Vec::new(), after, 0, None);
        let youngest = now.millis().saturating_sub(millis(retention.shortest()));
        LIVE.scan(state, &range, Order::Ascending, |key, ()| {
            if key.0.millis() > youngest {
                last = None;
                return ControlFlow::Break(());
            }
            if last == Some(key) {
                return ControlFlow::Continue(());
            }
            looked_at += 1;
            last = Some(key);
            match self.is_due(state, key.1, now) {
                Ok(true) => due.push(key.1),
                Ok(false) => {}
                Err(failed) => error = Some(failed),
            }
            if error.is_some() || due.len() >= RETIRED_MAX || looked_at >= LOOKED_AT_MAX {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        if let Some(error) = error {
            return Err(error);
        }
        let is_whole = due.len() >= RETIRED_MAX || looked_at < LOOKED_AT_MAX;
        if is_whole {
            look.at = Some((begun + retention.look_every).max(now + PAUSE));
        } else {
            look.under_way = Some((begun, last));
            // What was decided is called for again at once.
            look.at = Some(if due.is_empty() { now + PAUSE } else { now });
        }
        let retired = due.into_iter().map(|artifact| ArtifactRetired { artifact });
        Ok(retired.fold(Decision::nothing(), Decision::fact))
    }

    fn is_due(&self, state: &dyn Store, id: ArtifactId, now: Timestamp) -> Result<bool, StateError> {
        let artifact = tables::ARTIFACTS.expect(state, &id)?;
        Ok(artifact.status != Status::Retired && self.config.retention.keeps(state, id, &artifact, now)?.is_none())
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        let table = [
            ("web", "web", true),
            ("web", "web-1", false),
            ("*", "anything", true),
            ("web-*", "web-1", true),
            ("web-*", "web", false),
            ("*-nightly", "web-nightly", true),
            ("*-nightly", "web-nightly-2", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
        ];
        for (pattern, name, expected) in table {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }
}
