//! Manifest and layout as they travel: compressed streams, cut into packs; and read back, checked against the root.

use std::{
    collections::HashMap,
    io::{self, Cursor, Read},
};

use bytes::Bytes;
use longshore_schemas::PackId;

use crate::{
    ArtifactRoot, Error, KIB, Layout, Manifest, PackRead, PackRef,
    keyed::{self, KEY_BYTES_MAX},
    manifest::Outline,
    table::ChunkTable,
};

/// Largest manifest or layout, uncompressed, in bytes.
pub const INDEX_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Smaller manifests are no keys: what they save is not worth another pack.
const KEY_BYTES_MIN: usize = 64 * KIB;
/// A key is used again as long as it makes the next manifest so many times smaller than itself.
const KEY_SAVES_TIMES: u64 = 4;
/// Largest window a stream may ask of its reader, as a power of two: 8 MiB.
const WINDOW_LOG_MAX: u32 = 23;

/// All that is known of an artifact once its first packs are there: what it consists of and where that lies.
#[derive(Debug, Clone)]
pub struct Index {
    pub root: ArtifactRoot,
    pub manifest: Manifest,
    pub layout: Layout,
}

impl Index {
    /// The packs that must be fetched before anything else of the artifact can be: its manifest and layout.
    pub fn packs(root: &ArtifactRoot) -> impl Iterator<Item = &PackRef> {
        root.manifest.iter().chain(&root.layout)
    }

    /// Decodes manifest and layout from their packs, and checks them against the artifact's name and each other.
    pub fn decode(root: &ArtifactRoot, packs: &HashMap<PackId, Bytes>) -> Result<Self, Error> {
        root.check()?;
        let manifest = with_manifest(root, packs, |from| Manifest::read_bounded(from, root.files))?;
        if manifest.id() != root.artifact {
            return Err(Error::WrongManifest { expected: root.artifact, found: manifest.id() });
        }
        let layout = Layout::read(decoder(&root.layout, packs, "layout")?, &manifest)?;
        let counts = (manifest.entries().len() as u64, manifest.chunks().len() as u64, manifest.size_bytes());
        compare(root, &layout, counts)?;
        Ok(Self { root: root.clone(), manifest, layout })
    }

    /// Without a layout, for an artifact all of whose chunks are installed or made by a patch. If it turns out that a pack is needed after
    /// all, that is an error: then the layout is to be fetched.
    pub fn without_layout(root: &ArtifactRoot, manifest: Manifest) -> Result<Self, Error> {
        root.check()?;
        if manifest.id() != root.artifact {
            return Err(Error::WrongManifest { expected: root.artifact, found: manifest.id() });
        }
        Ok(Self { root: root.clone(), manifest, layout: Layout::default() })
    }

    /// Whether an artifact can be decoded, without keeping anything of it.
    pub fn check(root: &ArtifactRoot, packs: &HashMap<PackId, Bytes>) -> Result<(), Error> {
        Self::decode_chunks(root, packs).map(drop)
    }

    /// Only what the artifact's chunks are and where they lie, checked likewise; its files take no memory.
    pub(crate) fn decode_chunks(
        root: &ArtifactRoot,
        packs: &HashMap<PackId, Bytes>,
    ) -> Result<(ChunkTable, Layout), Error> {
        root.check()?;
        let outline = with_manifest(root, packs, |from| Manifest::read_outline(from, root.files))?;
        let Outline { id, table, entries, size_bytes } = outline;
        if id != root.artifact {
            return Err(Error::WrongManifest { expected: root.artifact, found: id });
        }
        let layout = Layout::read_for(decoder(&root.layout, packs, "layout")?, table.chunks())?;
        compare(root, &layout, (entries, table.len() as u64, size_bytes))?;
        Ok((table, layout))
    }

    /// The bytes of the manifest that an artifact's next one may be compressed by, and its packs: its own, or the key that its own has, as
    /// long as that saves most of it. None if it is not worth it.
    pub(crate) fn key_of(root: &ArtifactRoot, packs: &HashMap<PackId, Bytes>) -> Result<Option<Key>, Error> {
        let (key, own) = root.manifest_parts();
        let sum = |packs: &[PackRef]| packs.iter().map(|pack| pack.bytes).sum::<u64>();
        let parts = match key {
            [] => own,
            key if sum(own) * KEY_SAVES_TIMES <= sum(key) => key,
            _ => return Ok(None),
        };
        let mut bytes = Vec::new();
        let read = decoder(parts, packs, "manifest")?.take(KEY_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|error| Error::malformed("manifest", error.to_string()))?;
        let usable = (KEY_BYTES_MIN..=KEY_BYTES_MAX).contains(&bytes.len());
        Ok(usable.then(|| (parts.to_vec(), bytes)))
    }

    /// The same, with the packs read from where they lie.
    pub fn load(root: &ArtifactRoot, source: &dyn PackRead) -> Result<Self, Error> {
        root.check()?;
        let mut packs = HashMap::new();
        for pack in Self::packs(root) {
            let mut bytes = vec![0; usize::try_from(pack.bytes).expect("checked against PACK_BYTES_MAX")];
            source.read_at(pack, 0, &mut bytes).map_err(|source| Error::Read { pack: pack.pack, source })?;
            packs.insert(pack.pack, Bytes::from(bytes));
        }
        Self::decode(root, &packs)
    }
}

/// The packs of a key, and its bytes.
pub(crate) type Key = (Vec<PackRef>, Vec<u8>);

/// Entries, chunks and bytes must be those that the root tells, and the packs too.
fn compare(root: &ArtifactRoot, layout: &Layout, counts: (u64, u64, u64)) -> Result<(), Error> {
    if layout.packs() != root.packs || counts != (root.files, root.chunks, root.size_bytes) {
        return Err(Error::malformed("root", "its packs or counts are not those of its manifest and layout"));
    }
    Ok(())
}

/// Hands over the manifest's bytes, which are not verified.
fn with_manifest<T>(
    root: &ArtifactRoot,
    packs: &HashMap<PackId, Bytes>,
    read: impl FnOnce(&mut dyn Read) -> Result<T, Error>,
) -> Result<T, Error> {
    let (key, own) = root.manifest_parts();
    if key.is_empty() {
        return read(&mut decoder(own, packs, "manifest")?);
    }
    let damaged = |error: io::Error| Error::malformed("manifest", error.to_string());
    let key = keyed::read_key(decoder(key, packs, "manifest")?).map_err(damaged)?;
    let decoder = keyed::decoder(joined(own, packs)?, &key).map_err(damaged)?;
    read(&mut decoder.take(INDEX_BYTES_MAX))
}

fn decoder(parts: &[PackRef], packs: &HashMap<PackId, Bytes>, what: &'static str) -> Result<impl Read + use<>, Error> {
    let damaged = |error: io::Error| Error::malformed(what, error.to_string());
    let mut decoder = zstd::Decoder::new(joined(parts, packs)?).map_err(damaged)?;
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(damaged)?;
    Ok(decoder.take(INDEX_BYTES_MAX))
}

/// The bytes of packs, each compared with its name.
fn joined(parts: &[PackRef], packs: &HashMap<PackId, Bytes>) -> Result<VecReader, Error> {
    let mut whole = VecReader::default();
    for part in parts {
        let Some(bytes) = packs.get(&part.pack) else {
            return Err(Error::Read { pack: part.pack, source: crate::ReadError::Missing });
        };
        if bytes.len() as u64 != part.bytes || PackId::of(bytes) != part.pack {
            return Err(Error::WrongPack { pack: part.pack });
        }
        whole.parts.push(Cursor::new(bytes.clone()));
    }
    Ok(whole)
}

/// Reads several byte strings as one.
#[derive(Default)]
struct VecReader {
    parts: Vec<Cursor<Bytes>>,
    next: usize,
}

impl Read for VecReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(part) = self.parts.get_mut(self.next) {
            match part.read(buffer)? {
                0 if !buffer.is_empty() => self.next += 1,
                read => return Ok(read),
            }
        }
        Ok(0)
    }
}
