//! `longshore simulate`: how long a region would take, on a network that is described and not there. Asks no server.

use std::{
    fs,
    path::Path,
    sync::LazyLock,
    time::{Duration, Instant},
};

use longshore_swarm_sim::{Clock, Outcome, Scenario, presets, svg};
use serde::Serialize;

use crate::{
    args::SimulateArgs,
    error::Error,
    output::{self, Format},
};

pub(super) fn run(args: &SimulateArgs, format: Format) -> Result<(), Error> {
    if args.list {
        let presets = listed()?;
        return match format {
            Format::Json => output::json(&presets),
            Format::Table => output::data(&table(&presets)),
        };
    }
    let scenario = scenario(args)?;
    let outcome = longshore_swarm_sim::simulate(&scenario, Clock::new(elapsed)).map_err(|error| usage(&error))?;
    if let Some(path) = &args.svg {
        draw(path, &outcome)?;
    }
    match format {
        Format::Json => output::json(&outcome),
        Format::Table => output::data(&outcome.to_string()),
    }
}

/// Since the first question: what a run costs is told with its outcome.
fn elapsed() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

fn usage(error: &longshore_swarm_sim::Error) -> Error {
    Error::Usage(error.to_string())
}

/// The preset or the file, with the changes in the order in which they were given.
fn scenario(args: &SimulateArgs) -> Result<Scenario, Error> {
    let base = match (&args.scenario, &args.preset) {
        (Some(path), _) => read(path)?,
        (None, Some(name)) => Scenario::preset(name).map_err(|error| usage(&error))?,
        (None, None) => return Err(Error::Usage("name a preset, or give --scenario FILE".to_owned())),
    };
    args.set
        .iter()
        .try_fold(base, |scenario, (field, value)| scenario.with(field, value))
        .map_err(|error| usage(&error))
}

fn read(path: &Path) -> Result<Scenario, Error> {
    let json = fs::read_to_string(path)
        .map_err(|error| Error::Usage(format!("cannot read the scenario {path:?}: {error}")))?;
    Scenario::from_json(&json).map_err(|error| Error::Usage(format!("{path:?}: {error}")))
}

fn draw(path: &Path, outcome: &Outcome) -> Result<(), Error> {
    let picture = svg(&[(outcome.scenario.as_str(), outcome)]);
    let failed = |error| anyhow::Error::new(error).context(format!("cannot write the picture to {path:?}"));
    fs::write(path, picture).map_err(|error| Error::Other(failed(error)))
}

/// What tells one preset from another.
#[derive(Serialize)]
struct Preset {
    preset: &'static str,
    scenario: Scenario,
}

fn listed() -> Result<Vec<Preset>, Error> {
    let preset = |preset| Ok(Preset { preset, scenario: Scenario::preset(preset).map_err(|error| usage(&error))? });
    presets::NAMES.into_iter().map(preset).collect()
}

fn table(presets: &[Preset]) -> String {
    let row = |Preset { preset, scenario }: &Preset| {
        let gigabits = |bits: f64| format!("{}", bits / 1e9);
        vec![
            (*preset).to_owned(),
            scenario.nodes.to_string(),
            scenario.nodes_per_rack.to_string(),
            output::size(scenario.artifact_bytes),
            scenario.packs().to_string(),
            gigabits(scenario.node_down_bits_per_second),
            scenario.rack_down_bits_per_second.map_or("-".to_owned(), gigabits),
            gigabits(scenario.bucket_bits_per_second),
        ]
    };
    let header = ["preset", "nodes", "in a rack", "artifact", "packs", "node gbit/s", "rack gbit/s", "bucket gbit/s"];
    output::table(&header, presets.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(preset: Option<&str>, file: Option<&Path>, set: &[(&str, &str)]) -> SimulateArgs {
        SimulateArgs {
            preset: preset.map(str::to_owned),
            scenario: file.map(Path::to_owned),
            set: set.iter().map(|(field, value)| ((*field).to_owned(), (*value).to_owned())).collect(),
            svg: None,
            list: false,
        }
    }

    #[test]
    fn every_preset_is_listed() {
        let text = table(&listed().expect("named"));
        assert_eq!(text.lines().count(), presets::NAMES.len() + 1);
        let lab = text.lines().nth(1).expect("a row").split_whitespace().collect::<Vec<_>>();
        assert_eq!(lab, ["lab", "20", "5", "64.0", "MiB", "16", "0.1", "0.125", "0.4"]);
    }

    #[test]
    fn changes_come_after_what_they_change() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("scenario.json");
        fs::write(&file, r#"{"nodes": 3, "artifact_bytes": 1048576}"#).expect("written");
        let changes = [("artifact_bytes", "2097152"), ("packs", "2"), ("churn.fraction", "0.5")];
        let scenario = scenario(&args(None, Some(&file), &changes)).expect("sound");
        assert_eq!((scenario.nodes, scenario.pack_bytes, scenario.churn.fraction), (3, 1 << 20, 0.5));
    }

    #[test]
    fn what_is_wrong_is_named_and_is_a_mistake_of_the_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).expect("written");
            path
        };
        let (wrong, torn, none) =
            (file("wrong.json", r#"{"nodes": 0}"#), file("torn.json", "{"), folder.path().join("none.json"));
        let table = [
            (args(Some("moon"), None, &[]), "no scenario `moon`; take one of lab"),
            (args(Some("lab"), None, &[("gbits", "1")]), "no field `gbits`; take one of"),
            (args(Some("lab"), None, &[("nodes", "x")]), "`nodes` cannot be `x`"),
            (args(Some("lab"), None, &[("nodes", "0")]), "`nodes` is 0; give 1 to"),
            (args(None, Some(&wrong), &[]), "wrong.json\": the scenario's field `nodes` is 0"),
            (args(None, Some(&torn), &[]), "torn.json\": the scenario is not what was expected"),
            (args(None, Some(&none), &[]), "cannot read the scenario"),
        ];
        for (args, expected) in table {
            let error = run(&args, Format::Table).expect_err(expected);
            assert!(matches!(error, Error::Usage(_)) && error.to_string().contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn a_run_leaves_a_picture() {
        let folder = tempfile::tempdir().expect("a folder");
        let picture = folder.path().join("lab.svg");
        let args = SimulateArgs { svg: Some(picture.clone()), ..args(Some("lab"), None, &[]) };
        run(&args, Format::Json).expect("it runs");
        assert!(fs::read_to_string(&picture).expect("drawn").starts_with("<svg"));
    }
}
