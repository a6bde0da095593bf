//! What is kept of artifacts, and how what nothing needs is collected: the part of the settings that `up`, `control` and `region` share.
//!
//! ```text
//! [retention]
//! keep_last = 10              # LONGSHORE_RETENTION_KEEP_LAST: the newest artifacts of each name, beside all that is needed
//! keep_for = "30d"            # LONGSHORE_RETENTION_KEEP_FOR: and all that were built so lately. Without either nothing is retired
//! rules = [{ name = "web-*", keep_last = 50, keep_for = "90d" }]   # where it is otherwise; the first that fits
//! grace = "24h"               # what is retired, or was uploaded and not published, is deleted after this
//! announced_for = "1h"        # publishing takes half of it at most
//! interval = "6h"             # between two rounds
//! deletes_per_second = 100
//! ```

use std::time::Duration;

use longshore_control::{Collection, Keep, Retention, Rule};
use longshore_s3::Bucket;
use serde::{Deserialize, Deserializer, de};

use super::leases::time_text;

/// What the environment may set.
pub(crate) const KEYS: [&str; 7] = [
    "retention.keep_last",
    "retention.keep_for",
    "retention.rules",
    "retention.grace",
    "retention.announced_for",
    "retention.interval",
    "retention.deletes_per_second",
];
/// Of one name: reading whether an artifact is among them takes as many steps.
const KEEP_LAST_MAX: u32 = 1_000;
const RULES_MAX: usize = 1_000;
const DAYS_MAX: u64 = 36_500;
/// Below this, what a round has condemned would be in the way of publishers for too long.
const DELETES_MIN: u32 = 10;
/// Old artifacts are looked at so often, or as often as there are rounds.
const LOOK_SECONDS_MAX: u64 = 10 * 60;

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RetentionSettings {
    keep_last: Option<u32>,
    keep_for: Option<Lasting>,
    rules: Vec<RuleSettings>,
    grace: Lasting,
    announced_for: Lasting,
    interval: Lasting,
    deletes_per_second: u32,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleSettings {
    name: String,
    keep_last: Option<u32>,
    keep_for: Option<Lasting>,
}

impl Default for RetentionSettings {
    fn default() -> Self {
        let collected = longshore_region::CollectionSettings::default();
        Self {
            keep_last: None,
            keep_for: None,
            rules: Vec::new(),
            grace: Lasting(collected.grace),
            announced_for: Lasting(collected.announced_lasts),
            interval: Lasting(longshore_region::Limits::default().collect_interval),
            deletes_per_second: collected.deletes_per_second,
        }
    }
}

/// `90`, `"15m"`, `"24h"`, `"30d"`
#[derive(Debug, Clone, Copy, PartialEq)]
struct Lasting(Duration);

impl<'de> Deserialize<'de> for Lasting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = time_text(deserializer)?;
        lasting(&text).ok_or_else(|| de::Error::custom(format!("{text:?}: give a time such as 90s, 15m, 24h or 30d")))
    }
}

fn lasting(text: &str) -> Option<Lasting> {
    let (number, unit) = match text.char_indices().last()? {
        (at, 's') => (&text[..at], 1),
        (at, 'm') => (&text[..at], 60),
        (at, 'h') => (&text[..at], 3_600),
        (at, 'd') => (&text[..at], 86_400),
        _ => (text, 1),
    };
    let seconds = number.parse::<u64>().ok()?.checked_mul(unit)?;
    (seconds <= DAYS_MAX * 86_400).then(|| Lasting(Duration::from_secs(seconds)))
}

impl RetentionSettings {
    pub(crate) fn check(&self) -> Result<(), String> {
        let counts = self.rules.iter().filter_map(|rule| rule.keep_last).chain(self.keep_last);
        if counts.max() > Some(KEEP_LAST_MAX) {
            return Err(format!("retention.keep_last: use at most {KEEP_LAST_MAX}"));
        }
        if self.rules.len() > RULES_MAX || self.rules.iter().any(|rule| rule.name.is_empty()) {
            return Err(format!(
                "retention.rules: give at most {RULES_MAX}, each with a name, in which * stands for anything"
            ));
        }
        if self.grace.0.is_zero() || self.interval.0.is_zero() {
            return Err("retention.grace and retention.interval: use at least 1s".to_owned());
        }
        if self.announced_for.0.is_zero() || self.grace.0 < self.announced_for.0 {
            return Err(
                "retention.grace: use at least as long as retention.announced_for, which is at least 1s".to_owned()
            );
        }
        if self.deletes_per_second < DELETES_MIN {
            return Err(format!("retention.deletes_per_second: use at least {DELETES_MIN}"));
        }
        Ok(())
    }

    /// For replication.
    pub(crate) fn retention(&self) -> Retention {
        let usual = Keep::default();
        // What nobody asked for is not done: nothing is retired that no rule is for.
        let otherwise = match (self.keep_last, self.keep_for) {
            (None, None) => Keep::EVERYTHING,
            (last, lately) => {
                Keep { last: last.unwrap_or(usual.last), lately: lately.map_or(usual.lately, |lasting| lasting.0) }
            }
        };
        let rule = |rule: &RuleSettings| Rule {
            name: rule.name.clone(),
            keep: Keep {
                last: rule.keep_last.or(self.keep_last).unwrap_or(usual.last),
                lately: rule.keep_for.or(self.keep_for).map_or(usual.lately, |lasting| lasting.0),
            },
        };
        Retention {
            rules: self.rules.iter().map(rule).collect(),
            otherwise,
            look_every: self.interval.0.min(Duration::from_secs(LOOK_SECONDS_MAX)),
        }
    }

    pub(crate) fn collected(&self) -> longshore_region::CollectionSettings {
        longshore_region::CollectionSettings {
            grace: self.grace.0,
            announced_lasts: self.announced_for.0,
            deletes_per_second: self.deletes_per_second,
        }
    }

    pub(crate) fn every(&self) -> Duration {
        self.interval.0
    }

    /// Of the main bucket.
    pub(crate) fn collection(&self, bucket: &Bucket, installation: &str) -> Collection {
        let (bucket, installation) = (bucket.clone(), installation.to_owned());
        Collection { bucket, settings: self.collected(), every: self.every(), installation }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_what_cannot_be_is_refused_by_its_name() {
        let read = |text: &str| serde_json::from_str::<RetentionSettings>(text).map_err(|error| error.to_string());
        let settings = read(
            r#"{"keep_last": 3, "keep_for": "2d", "grace": "2h", "rules": [{"name": "web-*", "keep_for": "90d"}]}"#,
        );
        let retention = settings.expect("valid").retention();
        let day = Duration::from_secs(86_400);
        assert_eq!(retention.otherwise, Keep { last: 3, lately: 2 * day });
        let name = |text: &str| text.parse().expect("valid");
        assert_eq!(retention.of(&name("web-1")), Keep { last: 3, lately: 90 * day });
        assert_eq!(retention.of(&name("api")), retention.otherwise);
        // Nothing is retired that nobody spoke of.
        let rules = read(r#"{"rules": [{"name": "web", "keep_last": 1, "keep_for": 0}]}"#).expect("valid").retention();
        assert_eq!(rules.otherwise, Keep::EVERYTHING);
        assert_eq!(rules.of(&name("web")), Keep { last: 1, lately: Duration::ZERO });
        let table = [
            (r#"{"keep_last": 1001}"#, "retention.keep_last"),
            (r#"{"keep_for": "soon"}"#, "give a time such as"),
            (r#"{"keep_for": "-1d"}"#, "give a time such as"),
            (r#"{"keep": 1}"#, "unknown field `keep`"),
            (r#"{"grace": 0}"#, "retention.grace"),
            (r#"{"grace": "59m"}"#, "retention.announced_for"),
            (r#"{"deletes_per_second": 1}"#, "retention.deletes_per_second"),
            (r#"{"rules": [{"name": ""}]}"#, "retention.rules"),
            (r#"{"rules": [{"keep_last": 1}]}"#, "missing field `name`"),
        ];
        for (text, expected) in table {
            let error = read(text).and_then(|settings| settings.check()).expect_err(text);
            assert!(error.contains(expected), "{text}: {error:?} says {expected:?}");
        }
    }
}
