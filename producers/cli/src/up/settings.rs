//! What an operator may set for `longshore up`: defaults → file → environment → flags, checked before anything starts.
//!
//! ```text
//! [worker]
//! silence = "60s"    # LONGSHORE_WORKER_SILENCE, --worker-silence
//! beat = "10s"       # LONGSHORE_WORKER_BEAT, --worker-beat
//! confirm = "10s"    # LONGSHORE_WORKER_CONFIRM, --worker-confirm
//! ```
//!
//! `[snapshots]` is in `snapshots`.

use std::fmt;

use longshore_service::config::{self, Sources};
use serde::{Deserialize, Deserializer, de};

use super::snapshots::{self, Snapshots};
use crate::{
    args::{UpArgs, seconds},
    error::Error,
};

/// Beats that must fit into the silence: one may be late and one be lost.
const BEATS_MIN: u32 = 3;
/// An assignment may wait for its bases that long, and must then reach the worker.
const CONFIRM_SECONDS_MIN: u32 = 5;

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Settings {
    pub(super) worker: Leases,
    pub(super) snapshots: Snapshots,
}

/// How long the queue trusts that a worker is at work.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Leases {
    pub(super) silence: Seconds,
    pub(super) beat: Seconds,
    pub(super) confirm: Seconds,
}

impl Default for Leases {
    fn default() -> Self {
        Self { silence: Seconds(60), beat: Seconds(10), confirm: Seconds(10) }
    }
}

/// `90`, `"90s"`, `"15m"`, `"2h"`
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Seconds(pub(super) u32);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a time such as 90s, 15m or 2h")]
        enum Text {
            Number(i64),
            Text(String),
        }
        let text = match Text::deserialize(deserializer)? {
            Text::Number(number) => number.to_string(),
            Text::Text(text) => text,
        };
        seconds(&text).map(Self).map_err(|error| de::Error::custom(format!("{text:?}: {error}")))
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.0)
    }
}

impl Settings {
    pub(super) fn load(args: &UpArgs) -> Result<Self, Error> {
        let given = [
            ("worker.silence", &args.worker_silence),
            ("worker.beat", &args.worker_beat),
            ("worker.confirm", &args.worker_confirm),
        ];
        let flags = given.iter().filter_map(|(key, text)| Some((*key, (*text).clone()?))).collect();
        let keys = given.iter().map(|(key, _)| *key).chain(snapshots::KEYS).collect();
        let sources = Sources { file: args.config.clone(), keys, flags };
        let settings: Self = config::load(&sources).map_err(|error| Error::Usage(error.to_string()))?;
        settings.worker.check().map_err(Error::Usage)?;
        settings.snapshots.check().map_err(Error::Usage)?;
        Ok(settings)
    }
}

impl Leases {
    fn check(&self) -> Result<(), String> {
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

#[cfg(test)]
mod tests {
    use longshore_service::telemetry::Format;

    use super::*;
    use crate::args::LogArgs;

    fn leases(silence: u32, beat: u32, confirm: u32) -> Leases {
        Leases { silence: Seconds(silence), beat: Seconds(beat), confirm: Seconds(confirm) }
    }

    fn load(file: &str, flags: &[(&'static str, &str)]) -> Result<Settings, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("longshore.toml");
        std::fs::write(&path, file).expect("written");
        let flag = |name: &str| flags.iter().find(|(key, _)| *key == name).map(|(_, text)| (*text).to_owned());
        let args = UpArgs {
            listen: ([127, 0, 0, 1], 0).into(),
            regions: Vec::new(),
            s3_listen: ([127, 0, 0, 1], 0).into(),
            region_listen: ([127, 0, 0, 1], 0).into(),
            config: Some(path),
            worker_silence: flag("silence"),
            worker_beat: flag("beat"),
            worker_confirm: flag("confirm"),
            limits: Vec::new(),
            log: LogArgs { log_format: Format::Text },
        };
        Settings::load(&args).map_err(|error| error.to_string())
    }

    #[test]
    fn times_come_from_the_file_and_flags_come_before_it() {
        let file = "[worker]\nsilence = \"10m\"\nbeat = 20\n[snapshots]\ninterval = \"1h\"\nkeep = 5";
        let worker = |file, flags| load(file, flags).map(|settings| settings.worker);
        assert_eq!(load("", &[]), Ok(Settings { worker: leases(60, 10, 10), snapshots: Snapshots::default() }));
        assert_eq!(worker(file, &[]), Ok(leases(600, 20, 10)));
        assert_eq!(worker(file, &[("beat", "1s"), ("silence", "3")]), Ok(leases(3, 1, 10)));
        let snapshots = load(file, &[]).map(|settings| settings.snapshots);
        assert_eq!(snapshots, Ok(Snapshots { interval: Seconds(3600), facts: 10_000, keep: 5 }));
    }

    #[test]
    fn what_cannot_work_is_refused_with_a_reason() {
        type Flags = &'static [(&'static str, &'static str)];
        let table: [(&str, Flags, &str); 8] = [
            ("", &[("silence", "29s")], "at least 3 beats"),
            ("[worker]\nbeat = \"1m\"", &[], "worker.silence is 60 s, and workers speak every 60 s"),
            ("", &[("confirm", "4s")], "worker.confirm is 4 s"),
            ("", &[("silence", "soon")], "--worker-silence"),
            ("[worker]\nbeat = 0", &[], "1s to 24h"),
            ("[worker]\nbeats = 1", &[], "unknown field `beats`"),
            ("[snapshots]\nkeep = 0", &[], "snapshots.keep"),
            ("[snapshots]\ninterval = \"often\"", &[], "a time such as"),
        ];
        for (file, flags, expected) in table {
            let error = load(file, flags).expect_err(expected);
            assert!(error.contains(expected), "{error:?} says {expected:?}");
        }
    }
}
