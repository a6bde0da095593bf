//! Installed releases: a directory `<releases>/<artifact>` and, beside it, `<artifact>.manifest`.
//!
//! The manifest lies outside of the tree, so that the tree is exactly the artifact. It is what lets the next release of a
//! service take unchanged chunks from this one instead of the network.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use longshore_schemas::ArtifactId;

use crate::{Error, INDEX_BYTES_MAX, Manifest};

const LEVEL: i32 = 3;

/// A release on this machine's disk.
#[derive(Debug, Clone)]
pub struct Installed {
    pub dir: PathBuf,
    pub manifest: Manifest,
}

/// Where the manifest of an installed release lies.
pub fn manifest_path(releases: &Path, artifact: &ArtifactId) -> PathBuf {
    releases.join(format!("{artifact}.manifest"))
}

/// Keeps a manifest beside its release, durably.
pub fn save_manifest(releases: &Path, manifest: &Manifest) -> Result<(), Error> {
    let path = manifest_path(releases, &manifest.id());
    write_durably(&path, |file| {
        let mut encoder = zstd::Encoder::new(BufWriter::new(file), LEVEL)?;
        manifest.write(&mut encoder).map_err(io::Error::other)?;
        encoder.finish()?.into_inner().map(drop).map_err(io::IntoInnerError::into_error)
    })
}

/// Finds a release that was installed before, with its manifest verified; the files of the tree are not read.
pub fn load_installed(releases: &Path, artifact: &ArtifactId) -> Result<Installed, Error> {
    let path = manifest_path(releases, artifact);
    let file = File::open(&path).map_err(Error::io("open", &path))?;
    let decoder = zstd::Decoder::new(BufReader::new(file)).map_err(Error::io("read", &path))?;
    let manifest = Manifest::read(io::Read::take(decoder, INDEX_BYTES_MAX))?;
    if manifest.id() != *artifact {
        return Err(Error::WrongManifest { expected: *artifact, found: manifest.id() });
    }
    Ok(Installed { dir: releases.join(artifact.to_string()), manifest })
}

/// Removes a release and its manifest; what is already gone is no error.
pub fn remove_installed(releases: &Path, artifact: &ArtifactId) -> Result<(), Error> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    let manifest = manifest_path(releases, artifact);
    gone(fs::remove_file(&manifest)).map_err(Error::io("remove", &manifest))?;
    let dir = releases.join(artifact.to_string());
    gone(fs::remove_dir_all(&dir)).map_err(Error::io("remove", &dir))
}

/// Writes a file under another name, syncs it, and only then gives it its own.
pub(crate) fn write_durably(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), Error> {
    // Several may fetch the same pack at once: each writes its own file, and the last rename wins with equal bytes.
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-{}.partial", std::process::id(), WRITES.fetch_add(1, Ordering::Relaxed)));
    let partial = path.with_file_name(name);
    let mut file = File::create(&partial).map_err(Error::io("create", &partial))?;
    let written = write(&mut file).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&partial, path));
    if let Err(error) = written {
        // The error matters more than a leftover.
        let _ = fs::remove_file(&partial);
        return Err(Error::io("write", path)(error));
    }
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

pub(crate) fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", dir))
}
