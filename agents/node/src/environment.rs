//! The environment of a release: what the agent says, what the run says, and the files of the machine that the run names.
//!
//! The files are read once, when the release comes, and kept as of then: it is started again, or gone back to, with the values that it
//! had. They may be secrets; so what is kept is for its owner's eyes only, and no message shows a value.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use longshore_node_policy::variables;
use longshore_schemas::events::StringMap;
use longshore_service::durable;

use crate::{Error, plan::Release};

const FOLDER: &str = "environments";
/// Of one file.
pub const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Reads the release's files anew and keeps what they say.
pub fn take(service: &Path, release: &Release) -> Result<StringMap, Error> {
    let mut variables = StringMap::new();
    if release.run.environment_files.is_empty() {
        return Ok(variables);
    }
    for file in &release.run.environment_files {
        variables.extend(read(Path::new(file)).map_err(|reason| {
            Error::Unhealthy(format!(
                "the environment file {file} {reason}; mend it on this machine, or take it out of the run"
            ))
        })?);
    }
    let json = serde_json::to_vec(&variables).map_err(|error| Error::Refused(error.to_string()))?;
    durable::write(&path(service, release.revision), &json, durable::PRIVATE_MODE)?;
    Ok(variables)
}

/// What the files said when the release came. What is lost of that is read anew.
pub fn kept(service: &Path, release: &Release) -> Result<StringMap, Error> {
    let kept = durable::read(&path(service, release.revision))?;
    match kept.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
        Some(variables) => Ok(variables),
        None => take(service, release),
    }
}

/// Removes what is kept of other revisions.
pub fn forget_others(service: &Path, revisions: &BTreeSet<u64>) {
    let entries = fs::read_dir(service.join(FOLDER)).into_iter().flatten().flatten();
    let keeps = |path: &Path| {
        let revision = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        revision.is_some_and(|revision: u64| revisions.contains(&revision))
    };
    for path in entries.map(|entry| entry.path()).filter(|path| !keeps(path)) {
        // The next time will do, too.
        let _ = fs::remove_file(path);
    }
}

fn path(service: &Path, revision: u64) -> PathBuf {
    service.join(FOLDER).join(format!("{revision}.json"))
}

fn read(file: &Path) -> Result<StringMap, String> {
    let unreadable = |error: std::io::Error| format!("cannot be read: {error}");
    let bytes = fs::metadata(file).map_err(unreadable)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(format!("has {bytes} bytes, more than {FILE_BYTES_MAX}"));
    }
    variables::parse(&fs::read_to_string(file).map_err(unreadable)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use longshore_schemas::{ArtifactId, events::RunSpec};

    use super::*;

    fn release(revision: u64, files: &[&Path]) -> Release {
        let environment_files = files.iter().map(|file| file.to_string_lossy().into_owned()).collect();
        let run = RunSpec { environment_files, ..RunSpec::default() };
        Release { revision, artifact: ArtifactId::of(b"web"), run, healthy: false }
    }

    #[test]
    fn values_belong_to_the_release_that_came_with_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let (service, files) = (folder.path().join("web"), [folder.path().join("a"), folder.path().join("b")]);
        fs::write(&files[0], "TOKEN=one\nMODE=plain\n").expect("written");
        fs::write(&files[1], "MODE=dark\n").expect("written");
        let both = [files[0].as_path(), files[1].as_path()];
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let first: StringMap = map(&[("MODE", "dark"), ("TOKEN", "one")]);
        assert_eq!(take(&service, &release(1, &both)).expect("readable"), first, "the later file wins");
        let mode = fs::metadata(path(&service, 1)).expect("kept").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        fs::write(&files[0], "TOKEN=two\n").expect("written");
        assert_eq!(kept(&service, &release(1, &both)).expect("kept"), first, "as of the release");
        let second = map(&[("MODE", "dark"), ("TOKEN", "two")]);
        assert_eq!(kept(&service, &release(2, &both)).expect("read"), second, "nothing was kept: it is read");
        forget_others(&service, &[2].into());
        assert!(!path(&service, 1).exists() && path(&service, 2).exists());
    }

    #[test]
    fn what_is_missing_or_no_file_of_variables_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let (missing, wrong) = (folder.path().join("missing.env"), folder.path().join("wrong.env"));
        fs::write(&wrong, "hunter2\n").expect("written");
        for (file, reason) in [(&missing, "No such file"), (&wrong, "line 1")] {
            let error = take(folder.path(), &release(1, &[file.as_path()])).expect_err("no variables");
            assert!(matches!(error, Error::Unhealthy(_)), "{error:?}");
            let text = error.to_string();
            assert!(text.contains(&*file.to_string_lossy()) && text.contains(reason), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
