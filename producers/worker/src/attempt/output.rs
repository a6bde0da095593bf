//! What a build's command left, if it did.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use longshore_schemas::events::FailureReason;

use super::Failure;

/// Entries of a folder that a message names.
const LISTED_MAX: usize = 10;

/// The output's place, which is within the checkout whatever links there are.
pub(super) fn find(checkout: &Path, output: &str) -> Result<PathBuf, Failure> {
    let relative = Path::new(output);
    let inside = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if output.is_empty() || !relative.components().all(inside) {
        let message = format!("the output path {output:?} must be relative to the checkout, without \"..\"");
        return Err(Failure::new(FailureReason::OutputInvalid, message));
    }
    let path = match checkout.join(relative).canonicalize() {
        Ok(path) => path,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Err(missing(output, &neighbours(checkout, relative)));
        }
        Err(error) => return Err(Failure::worker(format!("cannot read the output {output:?}: {error}"))),
    };
    let checkout = checkout.canonicalize().map_err(Failure::worker)?;
    if !path.starts_with(&checkout) {
        let message =
            format!("the output {output:?} is a link that leaves the checkout; copy what it points to instead");
        return Err(Failure::new(FailureReason::OutputInvalid, message));
    }
    Ok(path)
}

pub(super) fn missing(output: &str, neighbours: &str) -> Failure {
    let message = format!(
        "the command succeeded, but there is nothing at the output path {output:?}{neighbours}; check output and command"
    );
    Failure::new(FailureReason::OutputMissing, message)
}

/// What is there instead: the nearest folder that exists, and what it holds.
fn neighbours(checkout: &Path, output: &Path) -> String {
    let folders = output.ancestors().skip(1);
    let Some((folder, entries)) =
        folders.filter_map(|folder| Some((folder, fs::read_dir(checkout.join(folder)).ok()?))).next()
    else {
        return String::new();
    };
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name != ".git");
    names.sort();
    let more = if names.len() > LISTED_MAX { ", …" } else { "" };
    names.truncate(LISTED_MAX);
    let folder = if folder.as_os_str().is_empty() { "the checkout".to_owned() } else { format!("{folder:?}") };
    if names.is_empty() {
        format!(" ({folder} is empty)")
    } else {
        format!(" ({folder} holds {}{more})", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_found_inside_the_checkout_only() {
        let dir = tempfile::tempdir().expect("a folder");
        let checkout = dir.path().join("checkout");
        fs::create_dir_all(checkout.join("target/release")).expect("created");
        fs::write(checkout.join("target/release/app"), "x").expect("written");
        std::os::unix::fs::symlink("target", checkout.join("link")).expect("linked");
        std::os::unix::fs::symlink("/etc", checkout.join("outside")).expect("linked");
        let table = [
            ("target/release/app", None),
            ("./target", None),
            ("link/release", None),
            ("target/debug/app", Some((FailureReason::OutputMissing, "\"target\" holds release"))),
            ("target/release/app/x", Some((FailureReason::OutputMissing, "output path"))),
            ("nothing", Some((FailureReason::OutputMissing, "the checkout holds link, outside, target"))),
            ("outside/passwd", Some((FailureReason::OutputInvalid, "leaves the checkout"))),
            ("../x", Some((FailureReason::OutputInvalid, "relative"))),
            ("/etc/passwd", Some((FailureReason::OutputInvalid, "relative"))),
            ("", Some((FailureReason::OutputInvalid, "relative"))),
        ];
        for (output, expected) in table {
            match (find(&checkout, output), expected) {
                (Ok(_), None) => {}
                (Err(failure), Some((reason, text))) => {
                    assert_eq!(failure.reason, reason, "{output}");
                    assert!(failure.message.contains(text), "{output}: {}", failure.message);
                }
                (found, expected) => panic!("{output}: {found:?} instead of {expected:?}"),
            }
        }
    }
}
