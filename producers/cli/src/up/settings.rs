//! What an operator may set for `longshore up`: defaults → file → environment → flags, checked before anything starts.
//!
//! ```text
//! [worker]
//! silence = "60s"    # LONGSHORE_WORKER_SILENCE, --worker-silence
//! beat = "10s"       # LONGSHORE_WORKER_BEAT, --worker-beat
//! confirm = "10s"    # LONGSHORE_WORKER_CONFIRM, --worker-confirm
//! ```
//!
//! `[snapshots]` is in `roles::snapshots`, `[provenance]` and `[goals]` in `roles::signing`, `[retention]` in `roles::retention`.

use longshore_service::config::{self, Sources};
use serde::Deserialize;

use crate::{
    args::UpArgs,
    error::Error,
    roles::{
        leases::Leases, retention::RetentionSettings, settings::shared_keys, signing::KeySource, snapshots::Snapshots,
    },
};

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Settings {
    pub(super) worker: Leases,
    pub(super) snapshots: Snapshots,
    pub(super) provenance: KeySource,
    pub(super) goals: KeySource,
    pub(super) retention: RetentionSettings,
}

impl Settings {
    pub(super) fn load(args: &UpArgs) -> Result<Self, Error> {
        let given = [
            ("worker.silence", &args.worker_silence),
            ("worker.beat", &args.worker_beat),
            ("worker.confirm", &args.worker_confirm),
        ];
        let flags = given.iter().filter_map(|(key, text)| Some((*key, (*text).clone()?))).collect();
        let own = given.iter().map(|(key, _)| *key);
        let keys = own.chain(shared_keys()).collect();
        let sources = Sources { file: args.config.clone(), keys, flags, set: Vec::new() };
        let settings: Self = config::load(&sources).map_err(|error| Error::Usage(error.to_string()))?;
        settings.worker.check().map_err(Error::Usage)?;
        settings.snapshots.check().map_err(Error::Usage)?;
        settings.retention.check().map_err(Error::Usage)?;
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use longshore_service::telemetry::Format;

    use super::*;
    use crate::{args::LogArgs, roles::leases::Seconds};

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
        assert_eq!(load("", &[]), Ok(Settings { worker: leases(60, 10, 10), ..Settings::default() }));
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
            ("[snapshots]\ninterval = \"often\"", &[], "give a time of 1s to 24h"),
        ];
        for (file, flags, expected) in table {
            let error = load(file, flags).expect_err(expected);
            assert!(error.contains(expected), "{error:?} says {expected:?}");
        }
    }
}
