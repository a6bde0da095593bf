//! A region's authority as files, in one folder for those who make them, and in each region only its own.
//!
//! ```text
//!   authorities/eu.pem            the authorities that are believed in the region eu: for its processes and its nodes
//!   authorities/eu.key            what its processes certify with: it belongs to one of those, and stays in the region
//!   authorities/eu.revoked.json   names of nodes that are let in no more, such as ["i-17", "i-23"]; only if there are any
//!   authorities/eu.next.key       while one authority follows another: the next one's
//! ```
//!
//! The processes of a region read them again every second. To replace an authority: [`AuthorityFiles::add_next`], then, when
//! every node has heard of it, [`AuthorityFiles::switch`], and once the last certificate of the old one has run out,
//! [`AuthorityFiles::drop_old`].

use std::{
    collections::BTreeSet,
    fmt,
    fs::File,
    path::{Path, PathBuf},
};

use longshore_schemas::{NodeId, RegionName, Timestamp};
use longshore_service::{Error, durable};

use crate::{Authority, Key, REVOKED_MAX, Trust};

/// Where a region's authority is.
#[derive(Debug, Clone)]
pub struct AuthorityFiles {
    folder: PathBuf,
    region: RegionName,
}

/// Why an authority is not replaced.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Files(#[from] Error),
    #[error("the authority of {region} stays as it is: {reason}")]
    Order { region: RegionName, reason: &'static str },
}

/// What the files held when they were read.
#[derive(Clone, PartialEq, Eq)]
pub struct Content {
    key: Vec<u8>,
    authorities: Vec<u8>,
    revoked: Option<Vec<u8>>,
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Content(hidden)")
    }
}

impl AuthorityFiles {
    pub fn new(folder: &Path, region: &RegionName) -> Self {
        Self { folder: folder.to_owned(), region: region.clone() }
    }

    fn file(&self, ending: &str) -> PathBuf {
        self.folder.join(format!("{}.{ending}", self.region))
    }

    fn key(&self) -> PathBuf {
        self.file("key")
    }

    fn next_key(&self) -> PathBuf {
        self.file("next.key")
    }

    /// The file that nodes have too.
    pub fn authorities(&self) -> PathBuf {
        self.file("pem")
    }

    pub fn revoked(&self) -> PathBuf {
        self.file("revoked.json")
    }

    /// Makes an authority, unless there is one.
    pub fn make(&self, now: Timestamp) -> Result<(), Error> {
        if durable::read(&self.authorities())?.is_some() {
            return Ok(());
        }
        if durable::read(&self.key())?.is_some() {
            let reason =
                "there is no file of authorities beside it: restore that, or remove this key if it certified nobody";
            return Err(misfit(&self.key())(reason));
        }
        let (key, certificate) = Authority::make(&self.region, now).map_err(misfit(&self.authorities()))?;
        durable::write(&self.key(), key.pem().as_bytes(), durable::PRIVATE_MODE)?;
        durable::write(&self.authorities(), certificate.as_bytes(), durable::SHARED_MODE)
    }

    /// What is there now. It may not be valid: see [`AuthorityFiles::read`].
    pub fn content(&self) -> Result<Content, Error> {
        let there = |path: PathBuf| {
            let missing = || {
                misfit(&path)(
                    "it is not there: `longshore secrets` makes it, or copy it from another process of the region",
                )
            };
            durable::read(&path)?.ok_or_else(missing)
        };
        Ok(Content {
            key: there(self.key())?,
            authorities: there(self.authorities())?,
            revoked: durable::read(&self.revoked())?,
        })
    }

    /// The same, but for a list of revoked nodes that is there no more: nobody takes back by a file that is lost what was said in it.
    pub fn content_after(&self, last: &Content) -> Result<Content, Error> {
        let content = self.content()?;
        if last.revoked.is_some() && content.revoked.is_none() {
            return Err(misfit(&self.revoked())(
                "it was there and is not: write [] to it if no node is revoked any more",
            ));
        }
        Ok(content)
    }

    /// The authority, whom the region believes, and who is revoked.
    pub fn read(&self, held: &Content) -> Result<(Authority, Trust), Error> {
        let revoked = held.revoked.as_deref().map_or(Ok(BTreeSet::new()), |bytes| revoked(&self.revoked(), bytes))?;
        let trust = trust(&self.authorities(), &held.authorities, revoked)?;
        if *trust.region() != self.region {
            let reason = format!("it is of region {}, and this is {}", trust.region(), self.region);
            return Err(misfit(&self.authorities())(reason));
        }
        let key = Key::from_pem(&text(&self.key(), &held.key)?).map_err(misfit(&self.key()))?;
        let authority = Authority::of(key, &trust).map_err(misfit(&self.key()))?;
        Ok((authority, trust))
    }

    /// The node is let in no more, and its connections end. `false` if that was so before.
    pub fn revoke(&self, node: &NodeId) -> Result<bool, Error> {
        self.change_revoked(|revoked| revoked.insert(node.clone()))
    }

    /// The node may enrol again. `false` if it was not revoked.
    pub fn restore(&self, node: &NodeId) -> Result<bool, Error> {
        self.change_revoked(|revoked| revoked.remove(node))
    }

    /// Those that are revoked.
    pub fn all_revoked(&self) -> Result<BTreeSet<NodeId>, Error> {
        let path = self.revoked();
        durable::read(&path)?.map_or(Ok(BTreeSet::new()), |bytes| revoked(&path, &bytes))
    }

    fn change_revoked(&self, change: impl FnOnce(&mut BTreeSet<NodeId>) -> bool) -> Result<bool, Error> {
        let _lock = self.lock()?;
        let (path, mut nodes) = (self.revoked(), self.all_revoked()?);
        if !change(&mut nodes) {
            return Ok(false);
        }
        if nodes.len() > REVOKED_MAX {
            let reason = format!(
                "it would list more than {REVOKED_MAX} nodes: restore those whose last certificate ran out more than 30 days ago"
            );
            return Err(misfit(&path)(reason));
        }
        let json = serde_json::to_vec_pretty(&nodes).map_err(misfit(&path))?;
        durable::write(&path, &json, durable::SHARED_MODE)?;
        Ok(true)
    }

    /// One at a time reads and writes again.
    fn lock(&self) -> Result<File, Error> {
        let path = self.folder.join(".lock");
        let failed = |action| {
            let path = path.clone();
            move |source| Error::File { action, path, source }
        };
        let lock = File::options().create(true).write(true).truncate(false).open(&path).map_err(failed("open"))?;
        lock.lock().map_err(failed("lock"))?;
        Ok(lock)
    }

    /// From now on a second authority is believed, which does not certify yet.
    pub fn add_next(&self, now: Timestamp) -> Result<(), StepError> {
        let _lock = self.lock()?;
        let (next, path) = (self.next_key(), self.authorities());
        let held = self.content()?;
        let (_, trust) = self.read(&held)?;
        if durable::read(&next)?.is_some() {
            return Err(self.order("there is a next one already: switch to it first"));
        }
        let (key, certificate) = Authority::make(&self.region, now).map_err(misfit(&path))?;
        let both = format!("{}\n{certificate}", trust.pem().trim_end());
        trust_of_text(&path, &both)?;
        // The file of authorities first: without it the key would be one of none of them.
        durable::write(&path, both.as_bytes(), durable::SHARED_MODE)?;
        Ok(durable::write(&next, key.pem().as_bytes(), durable::PRIVATE_MODE)?)
    }

    /// The next authority certifies from now on; the old one is still believed.
    pub fn switch(&self) -> Result<(), StepError> {
        let _lock = self.lock()?;
        let next = self.next_key();
        let Some(pem) = durable::read(&next)? else {
            return Err(self.order("there is no next one to switch to"));
        };
        let held = Content { key: pem, ..self.content()? };
        self.read(&held)?;
        durable::write(&self.key(), &held.key, durable::PRIVATE_MODE)?;
        let removed = std::fs::remove_file(&next);
        Ok(removed.map_err(|source| Error::File { action: "remove", path: next, source })?)
    }

    /// Believed is from now on the one that certifies alone; how many are not any more.
    pub fn drop_old(&self) -> Result<usize, StepError> {
        let _lock = self.lock()?;
        if durable::read(&self.next_key())?.is_some() {
            return Err(self.order("there is a next one, which would be dropped with the old ones: switch to it first"));
        }
        let held = self.content()?;
        let (authority, trust) = self.read(&held)?;
        let (own, others) = authority.own_of(&trust);
        durable::write(&self.authorities(), own.as_bytes(), durable::SHARED_MODE)?;
        Ok(others)
    }

    fn order(&self, reason: &'static str) -> StepError {
        StepError::Order { region: self.region.clone(), reason }
    }
}

/// The authorities of a file that a node was given.
pub fn read_trust(path: &Path) -> Result<Trust, Error> {
    let Some(bytes) = durable::read(path)? else {
        return Err(misfit(path)("it is not there: it is authorities/REGION.pem of the installation's secrets"));
    };
    trust(path, &bytes, BTreeSet::new())
}

fn trust(path: &Path, bytes: &[u8], revoked: BTreeSet<NodeId>) -> Result<Trust, Error> {
    Trust::new(&text(path, bytes)?, revoked).map_err(misfit(path))
}

fn trust_of_text(path: &Path, pem: &str) -> Result<Trust, Error> {
    Trust::new(pem, BTreeSet::new()).map_err(misfit(path))
}

fn revoked(path: &Path, bytes: &[u8]) -> Result<BTreeSet<NodeId>, Error> {
    let nodes: BTreeSet<NodeId> = serde_json::from_slice(bytes).map_err(misfit(path))?;
    if nodes.len() > REVOKED_MAX {
        return Err(misfit(path)(format!("it lists more than {REVOKED_MAX} nodes")));
    }
    Ok(nodes)
}

fn text(path: &Path, bytes: &[u8]) -> Result<String, Error> {
    String::from_utf8(bytes.to_vec()).map_err(|_| misfit(path)("it is not text"))
}

fn misfit<T: fmt::Display>(path: &Path) -> impl FnOnce(T) -> Error + use<T> {
    let path = path.to_owned();
    move |reason| Error::Content { path, reason: reason.to_string() }
}
