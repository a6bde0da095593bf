//! `longshore-node install`: the unit, its settings and the folders, so that systemd keeps the agent running.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

use clap::Args;
use longshore_service::durable;

use crate::{Error, args::Run};

/// As it is in the repository, for a program in the usual place.
const UNIT: &str = include_str!("../../../infra/systemd/longshore-node.service");
const USUAL_PROGRAM: &str = "/usr/local/bin/longshore-node";
const UNIT_PATH: &str = "etc/systemd/system/longshore-node.service";
const SETTINGS_PATH: &str = "etc/longshore/node.env";

#[derive(Debug, Args)]
pub struct Install {
    #[command(flatten)]
    run: Run,
    /// The program that systemd starts [default: this one]
    #[arg(long)]
    program: Option<PathBuf>,
    /// Write below this folder, as for an image of a machine
    #[arg(long, default_value = "/")]
    root: PathBuf,
    /// Write nothing: show what would be written
    #[arg(long)]
    print: bool,
}

/// A file or folder that is to be there.
#[derive(Debug, PartialEq)]
enum Entry {
    Folder(PathBuf),
    File(PathBuf, String),
}

/// Writes it, or shows it; what is to be done next.
pub fn install(install: &Install) -> Result<String, Error> {
    let program = match &install.program {
        Some(program) => program.clone(),
        None => std::env::current_exe().map_err(Error::io(Path::new("/proc/self/exe")))?,
    };
    let entries = entries(&install.run, &program, &install.root)?;
    if install.print {
        return Ok(shown(&entries));
    }
    for entry in &entries {
        match entry {
            Entry::Folder(path) => durable::create_folder(path)?,
            Entry::File(path, text) => durable::write(path, text.as_bytes(), durable::SHARED_MODE)?,
        }
    }
    Ok("installed; now: systemctl daemon-reload && systemctl enable --now longshore-node\n".to_owned())
}

fn entries(run: &Run, program: &Path, root: &Path) -> Result<Vec<Entry>, Error> {
    let data = &run.data.data;
    let keys = [
        ("--region-authority", &run.region_authority),
        ("--goal-keys", &run.goal_keys),
        ("--provenance-keys", &run.provenance_keys),
    ];
    let files = run.token_file.iter().map(|file| ("--token-file", file)).chain(keys).chain([("--data", data)]);
    if let Some((flag, path)) = files.into_iter().find(|(_, path)| !path.is_absolute()) {
        let path = path.display();
        return Err(Error::Refused(format!("{flag} {path} depends on where the agent is started: give the full path")));
    }
    if run.stop_services_on_exit {
        let how = "--stop-services-on-exit cannot be installed: a restart of the agent would stop every service";
        return Err(Error::Refused(how.to_owned()));
    }
    let below = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    Ok(vec![
        Entry::Folder(below(data)),
        Entry::File(below(Path::new(SETTINGS_PATH)), settings(&run.variables())?),
        Entry::File(below(Path::new(UNIT_PATH)), unit(program)?),
    ])
}

fn unit(program: &Path) -> Result<String, Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '+');
    let text = program.to_str().filter(|text| text.starts_with('/') && text.chars().all(plain));
    let text = text.ok_or_else(|| {
        let path = program.display();
        Error::Refused(format!("the program {path} cannot stand in a unit: put it where its path is full and plain, such as {USUAL_PROGRAM}"))
    })?;
    Ok(UNIT.replace(USUAL_PROGRAM, text))
}

/// As systemd reads them.
fn settings(variables: &[(&str, String)]) -> Result<String, Error> {
    let mut text = "# The settings of longshore-node; `longshore-node run --help` says what each is.\n".to_owned();
    for (name, value) in variables {
        if value.contains(['\n', '\r', '\0']) {
            return Err(Error::Refused(format!("{name} has more than one line")));
        }
        let value = value.replace('\\', "\\\\").replace('"', "\\\"");
        writeln!(text, "{name}=\"{value}\"").map_err(|error| Error::Refused(error.to_string()))?;
    }
    Ok(text)
}

fn shown(entries: &[Entry]) -> String {
    let one = |entry: &Entry| match entry {
        Entry::Folder(path) => format!("# folder {}\n", path.display()),
        Entry::File(path, text) => format!("# file {}\n{text}", path.display()),
    };
    entries.iter().map(one).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_starts_this_program() {
        let text = unit(Path::new("/opt/longshore/longshore-node")).expect("plain");
        assert!(text.contains("ExecStart=/opt/longshore/longshore-node run\n") && !text.contains(USUAL_PROGRAM));
        assert!(text.contains(&format!("EnvironmentFile=/{SETTINGS_PATH}\n")));
        for path in ["longshore-node", "/opt/my programs/longshore-node", "/opt/%n"] {
            assert!(unit(Path::new(path)).expect_err(path).to_string().contains(path));
        }
    }

    #[test]
    fn settings_are_quoted() {
        let text = settings(&[("A", "x y".into()), ("B", "a\"b\\c".into())]).expect("one line each");
        assert!(text.ends_with("\nA=\"x y\"\nB=\"a\\\"b\\\\c\"\n"), "{text}");
        assert!(settings(&[("A", "x\ny".into())]).expect_err("two lines").to_string().contains('A'));
    }
}
