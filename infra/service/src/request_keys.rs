//! The keys that requests are signed with, as files: one folder for those who check, one file for each who signs.
//!
//! ```text
//!   requests/control.key      the control nodes', the same on all of them
//!   requests/region-eu.key    of the region eu; its own processes have this one file and no other
//! ```
//!
//! A file holds one secret a line, 64 hexadecimal digits each (`openssl rand -hex 32`). The first one signs, all are believed.
//! So a key is replaced without a stop: the new one becomes the second line wherever the file is, then the first, and then
//! the old one goes, once the last request that it signed has been processed. Processes read the files when they start.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use longshore_schemas::{
    RegionName,
    auth::{KnownKeys, RequestKey, SECRET_BYTES, Sender},
};

use crate::{Error, durable};

/// Keys of one sender. Two are enough to replace one by the other.
const KEYS_MAX: usize = 8;
const CONTROL: &str = "control.key";
const REGION: (&str, &str) = ("region-", ".key");

/// What a control node holds: the keys of all.
#[derive(Debug, Clone)]
pub struct RequestKeys {
    control: Vec<RequestKey>,
    regions: BTreeMap<RegionName, Vec<RequestKey>>,
}

impl RequestKeys {
    /// The keys in a folder. Without the control nodes' own it is an error; a region without a file is not believed.
    pub fn load(folder: &Path) -> Result<Self, Error> {
        let control = request_keys(&folder.join(CONTROL), &Sender::Control)?;
        let mut regions = BTreeMap::new();
        let entries = std::fs::read_dir(folder).map_err(Error::file("read", folder))?;
        for entry in entries {
            let path = entry.map_err(Error::file("read", folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(region) = name.strip_prefix(REGION.0).and_then(|name| name.strip_suffix(REGION.1)) else {
                continue;
            };
            let region: RegionName =
                region.parse().map_err(|_| Error::content(&path, "its name does not end with that of a region"))?;
            regions.insert(region.clone(), request_keys(&path, &Sender::Region(region))?);
        }
        Ok(Self { control, regions })
    }

    /// As [`RequestKeys::load`], for an installation of one process: keys that are not there are made.
    pub fn load_or_create(folder: &Path, regions: &[RegionName]) -> Result<Self, Error> {
        create(&folder.join(CONTROL))?;
        for region in regions {
            create(&region_file(folder, region))?;
        }
        Self::load(folder)
    }

    /// Keys that are all made of one secret: for tests and benchmarks, where nobody is a stranger to anybody.
    pub fn of_one_secret(secret: &[u8; SECRET_BYTES], regions: &[RegionName]) -> Self {
        let key = |sender| vec![RequestKey::new(sender, secret)];
        let regions = regions.iter().map(|region| (region.clone(), key(Sender::Region(region.clone()))));
        Self { control: key(Sender::Control), regions: regions.collect() }
    }

    /// What a control node signs with.
    pub fn own(&self) -> &RequestKey {
        // A file without a key is an error when it is read.
        &self.control[0]
    }

    /// A region's: it signs with the first. `None` if there is none of it here.
    pub fn of(&self, region: &RegionName) -> Option<&[RequestKey]> {
        self.regions.get(region).map(Vec::as_slice)
    }

    /// All that are believed.
    pub fn known(&self) -> KnownKeys {
        KnownKeys::new(self.control.iter().chain(self.regions.values().flatten()).cloned())
    }
}

/// A region's file in the folder of all keys.
pub fn region_file(folder: &Path, region: &RegionName) -> PathBuf {
    folder.join(format!("{}{region}{}", REGION.0, REGION.1))
}

/// The keys of one sender; the first is the one to sign with.
pub fn request_keys(path: &Path, sender: &Sender) -> Result<Vec<RequestKey>, Error> {
    let Some(bytes) = durable::read(path)? else {
        let reason =
            "it is not there: copy it from another process of the same sender, or make it with `openssl rand -hex 32`";
        return Err(Error::content(path, reason));
    };
    let text = String::from_utf8(bytes).map_err(|_| Error::content(path, "it is not text"))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let key = |line: &str| {
        let secret = blake3::Hash::from_hex(line).ok();
        secret.map(|secret| RequestKey::new(sender.clone(), secret.as_bytes()))
    };
    let keys: Option<Vec<_>> = lines.map(key).collect();
    match keys {
        Some(keys) if (1..=KEYS_MAX).contains(&keys.len()) => Ok(keys),
        _ => Err(Error::content(
            path,
            &format!("it has 1 to {KEYS_MAX} keys, one a line, of 64 hexadecimal digits each"),
        )),
    }
}

fn create(path: &Path) -> Result<(), Error> {
    if durable::read(path)?.is_some() {
        return Ok(());
    }
    let mut secret = [0; SECRET_BYTES];
    rand::fill(&mut secret);
    let line = format!("{}\n", blake3::Hash::from_bytes(secret).to_hex());
    durable::write(path, line.as_bytes(), durable::PRIVATE_MODE)
}

#[cfg(test)]
mod tests {
    use longshore_schemas::auth::{Signed, Speaker};

    use super::*;

    const WHAT: Signed<'static> = Signed { topic: "goal-requests", key: b"web", value: b"pause" };

    fn believed(by: &RequestKeys, key: &RequestKey) -> bool {
        by.known().check(Speaker::Control, None, [key.sign(WHAT).as_bytes()], WHAT).is_ok()
    }

    #[test]
    fn a_key_is_replaced_without_a_stop() {
        let folder = tempfile::tempdir().expect("a folder");
        let eu: RegionName = "eu".parse().expect("a region");
        let before = RequestKeys::load_or_create(folder.path(), std::slice::from_ref(&eu)).expect("made");
        let again = RequestKeys::load_or_create(folder.path(), std::slice::from_ref(&eu)).expect("read");
        assert_eq!((before.own(), before.of(&eu)), (again.own(), again.of(&eu)));
        assert_ne!(before.own().id(), before.of(&eu).expect("a key")[0].id());

        let file = folder.path().join(CONTROL);
        let old = std::fs::read_to_string(&file).expect("a file");
        let new = format!("{}\n", "ab".repeat(32));
        std::fs::write(&file, format!("{old}{new}")).expect("written");
        let both = RequestKeys::load(folder.path()).expect("read");
        assert_eq!(both.own(), before.own(), "the new one is known, and does not sign yet");
        std::fs::write(&file, format!("{new}\n{old}")).expect("written");
        let turned = RequestKeys::load(folder.path()).expect("read");
        assert!(believed(&both, turned.own()) && believed(&turned, both.own()));
        std::fs::write(&file, new).expect("written");
        let after = RequestKeys::load(folder.path()).expect("read");
        assert!(believed(&after, turned.own()) && !believed(&after, before.own()));
    }

    #[test]
    fn a_file_that_holds_no_key_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let missing = RequestKeys::load(folder.path()).expect_err("nothing is there");
        assert!(missing.to_string().contains("control.key"), "{missing}");
        for content in ["", "short\n", &"0".repeat(64).repeat(2), &format!("{}\n", "0".repeat(64)).repeat(KEYS_MAX + 1)]
        {
            std::fs::write(folder.path().join(CONTROL), content).expect("written");
            let error = RequestKeys::load(folder.path()).expect_err(content);
            assert!(error.to_string().contains("64 hexadecimal digits"), "{error}");
        }
    }
}
