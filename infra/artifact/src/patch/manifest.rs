//! The manifest in a patch, compressed by the base's.

use std::io::{self, Read, Write};

use longshore_schemas::ArtifactId;

use super::root::malformed;
use crate::{
    Error, INDEX_BYTES_MAX, Manifest,
    keyed::{self, KEY_BYTES_MAX},
};

/// Compresses a manifest; none if the base's is too large to be read again.
pub(super) fn write(manifest: &Manifest, base: &Manifest, level: i32) -> Result<Option<Vec<u8>>, Error> {
    let (new, key) = (bytes(manifest)?, bytes(base)?);
    if key.len() > KEY_BYTES_MAX {
        return Ok(None);
    }
    let compressed = || -> io::Result<_> {
        let mut encoder = keyed::encoder(Vec::new(), level, &key)?;
        encoder.write_all(&new)?;
        encoder.finish()
    };
    compressed().map(Some).map_err(|error| malformed(error.to_string()))
}

/// Reads the manifest of this artifact; any other is an error.
pub(super) fn read(from: impl Read, base: &Manifest, artifact: &ArtifactId) -> Result<Manifest, Error> {
    let key = bytes(base)?;
    if key.len() > KEY_BYTES_MAX {
        return Err(malformed("it has a manifest for a base whose own is too large"));
    }
    let decoder = keyed::decoder(from, &key).map_err(|error| malformed(error.to_string()))?;
    let manifest = Manifest::read(decoder.take(INDEX_BYTES_MAX))?;
    match manifest.id() {
        id if id == *artifact => Ok(manifest),
        found => Err(Error::WrongManifest { expected: *artifact, found }),
    }
}

fn bytes(manifest: &Manifest) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    manifest.write(&mut bytes)?;
    Ok(bytes)
}
