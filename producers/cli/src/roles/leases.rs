//! How long the queue trusts that a worker is at work: the part of the settings that `up` and `control` share.
//!
//! ```text
//! [worker]
//! silence = "60s"
//! beat = "10s"
//! confirm = "10s"
//! ```

use std::fmt;

use serde::{Deserialize, Deserializer, de};

use crate::args::seconds;

/// Beats that must fit into the silence: one may be late and one be lost.
const BEATS_MIN: u32 = 3;
/// An assignment may wait for its bases that long, and must then reach the worker.
const CONFIRM_SECONDS_MIN: u32 = 5;

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Leases {
    pub(crate) silence: Seconds,
    pub(crate) beat: Seconds,
    pub(crate) confirm: Seconds,
}

impl Default for Leases {
    fn default() -> Self {
        Self { silence: Seconds(60), beat: Seconds(10), confirm: Seconds(10) }
    }
}

/// `90`, `"90s"`, `"15m"`, `"2h"`
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Seconds(pub(crate) u32);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = time_text(deserializer)?;
        seconds(&text).map(Self).map_err(|error| de::Error::custom(format!("{text:?}: {error}")))
    }
}

/// A time as it stands in a file: a number of seconds, or a text with a unit.
pub(crate) fn time_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a time such as 90s, 15m or 2h")]
    enum Text {
        Number(i64),
        Text(String),
    }
    Ok(match Text::deserialize(deserializer)? {
        Text::Number(number) => number.to_string(),
        Text::Text(text) => text,
    })
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.0)
    }
}

impl Leases {
    pub(crate) fn check(&self) -> Result<(), String> {
        let Self { silence, beat, confirm } = self;
        if silence.0 < beat.0.saturating_mul(BEATS_MIN) {
            return Err(format!(
                "worker.silence is {silence}, and workers speak every {beat} (worker.beat): allow a silence of at least \
                 {BEATS_MIN} beats, or one that is late or lost ends a healthy build"
            ));
        }
        if confirm.0 < CONFIRM_SECONDS_MIN {
            return Err(format!(
                "worker.confirm is {confirm}: a worker needs {CONFIRM_SECONDS_MIN} s to learn of its job and to say so"
            ));
        }
        Ok(())
    }
}
