//! Whole files that an installed release has as they are wanted: shared with it instead of copied.
//!
//! ```text
//! a wanted file ─▶ the same chunks in a file of an installed release? ─▶ reflink, where the file system can
//!                                                                     ─▶ else hard link, if nobody may write to the file
//!                                                                     ─▶ else copied, chunk by chunk
//! ```
//!
//! A reflink is a file of its own: what is written to one of the two is not in the other. A hard link is the same file under two names, so
//! a release would change with another. Releases are not read-only as a whole (a service may write into its folder), so only files without any
//! write permission are linked. That holds off everybody but root, and an owner who takes the trouble to permit it first.
//!
//! What was shared is then read and compared with the manifest, under its new name: the older release may have rotted. A file that is not
//! right, or cannot be shared for whatever reason, is copied; so nothing here is an error.

use std::{
    fs::{self, File, Metadata, OpenOptions, Permissions},
    io,
    ops::ControlFlow,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::{fs::ioctl_ficlone, io::Errno};

use crate::{CHUNK_BYTES_MAX, Entry, Error, FileRef, Index, Installed, Manifest, Need, verify::verify_file};

/// To reflink a smaller file takes longer than to copy it, and saves next to nothing.
const REFLINK_BYTES_MIN: u64 = 16 * 1024;
const WRITE_BITS: u16 = 0o222;
/// With the bits that no manifest has.
const MODE_BITS: u32 = 0o7777;

/// How a file is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shared {
    Reflinked,
    HardLinked,
}

/// Shares files with installed releases, as long as the file system does.
pub(crate) struct Sharing<'a> {
    index: &'a Index,
    need: &'a Need,
    installed: &'a [Installed],
    /// User and group of what is made here.
    owner: (u32, u32),
    /// Not known before the first try.
    can_reflink: Option<bool>,
    can_link: bool,
    buffer: Box<[u8]>,
}

impl<'a> Sharing<'a> {
    /// Files are to be made in this directory, which is there already.
    pub(crate) fn new(index: &'a Index, need: &'a Need, installed: &'a [Installed], dir: &Path) -> Result<Self, Error> {
        let metadata = fs::metadata(dir).map_err(Error::io("look at", dir))?;
        let owner = (metadata.uid(), metadata.gid());
        let buffer = vec![0; CHUNK_BYTES_MAX].into_boxed_slice();
        Ok(Self { index, need, installed, owner, can_reflink: None, can_link: true, buffer })
    }

    /// Makes this file, right and with its mode, of one that an installed release has. `None` if that cannot be: then it is not there.
    pub(crate) fn share(&mut self, file: &FileRef, path: &Path) -> Option<Shared> {
        let worth_it = match self.can_reflink {
            Some(true) => file.bytes >= REFLINK_BYTES_MIN,
            Some(false) => self.may_link(file),
            None => true,
        };
        if !worth_it || file.bytes == 0 {
            return None;
        }
        for from in twins(self.index, self.need, self.installed, file) {
            let Some(shared) = self.make(&from, file, path) else { continue };
            match self.check(file, path) {
                Ok(()) => return Some(shared),
                Err(error) => tracing::warn!(?from, %error, "an installed file is damaged, taking what is right of it"),
            }
            discard(path);
        }
        None
    }

    fn may_link(&self, file: &FileRef) -> bool {
        self.can_link && file.mode & WRITE_BITS == 0
    }

    fn make(&mut self, from: &Path, file: &FileRef, path: &Path) -> Option<Shared> {
        if self.can_reflink != Some(false) {
            match reflink(from, file, path) {
                Ok(()) => {
                    self.can_reflink = Some(true);
                    return Some(Shared::Reflinked);
                }
                Err(error) if is_for_all(&error) => self.can_reflink = Some(false),
                Err(_) => {}
            }
        }
        if self.may_link(file) && from.symlink_metadata().is_ok_and(|from| self.is_as_made_here(&from, file)) {
            match fs::hard_link(from, path) {
                Ok(()) => return Some(Shared::HardLinked),
                Err(error) => self.can_link = !is_for_all(&error),
            }
        }
        None
    }

    /// Whether it has the owner and all mode bits that the file would have if it was made here.
    fn is_as_made_here(&self, found: &Metadata, file: &FileRef) -> bool {
        (found.uid(), found.gid()) == self.owner && found.mode() & MODE_BITS == u32::from(file.mode)
    }

    /// Whether it is the file that is there now.
    fn check(&mut self, file: &FileRef, path: &Path) -> Result<(), Error> {
        let metadata = path.symlink_metadata().map_err(Error::io("look at", path))?;
        if !self.is_as_made_here(&metadata, file) {
            return Err(Error::Differs { path: path.to_owned(), reason: "its owner or mode is another" });
        }
        let mut pace = |_| ControlFlow::Continue(());
        verify_file(path, &metadata, &self.index.manifest, file, &mut self.buffer, &mut pace).map(|_| ())
    }
}

/// Where installed releases have the same bytes by their manifests: at the same path, and in the file where the need found the beginning.
fn twins<'a>(
    index: &'a Index,
    need: &Need,
    installed: &'a [Installed],
    file: &FileRef,
) -> impl Iterator<Item = PathBuf> {
    let first = index.manifest.chunks_of(file).first();
    let elsewhere = first.and_then(|first| need.origin(*first as usize)).and_then(|origin| {
        let release = installed.get(origin.release as usize)?;
        let entry = release.manifest.entries().get(origin.entry as usize)?;
        (entry.path() != &*file.path).then_some((release, entry))
    });
    let here = installed.iter().filter_map(|release| Some((release, release.manifest.find(&file.path)?)));
    here.chain(elsewhere).filter_map(|(release, entry)| match entry {
        Entry::File(twin) if same_bytes((&release.manifest, twin), (&index.manifest, file)) => {
            Some(release.dir.join(&*twin.path))
        }
        _ => None,
    })
}

fn same_bytes((one, file): (&Manifest, &FileRef), (other, wanted): (&Manifest, &FileRef)) -> bool {
    let chunks = one.chunks_of(file).iter().map(|at| one.chunks()[*at as usize]);
    let wanted_chunks = other.chunks_of(wanted).iter().map(|at| other.chunks()[*at as usize]);
    file.bytes == wanted.bytes && chunks.eq(wanted_chunks)
}

fn reflink(from: &Path, file: &FileRef, path: &Path) -> io::Result<()> {
    let from = File::open(from)?;
    let out = OpenOptions::new().write(true).create_new(true).open(path)?;
    let made = ioctl_ficlone(&out, &from).map_err(io::Error::from);
    let made = made.and_then(|()| out.set_permissions(Permissions::from_mode(file.mode.into())));
    made.inspect_err(|_| discard(path))
}

/// Whether the error says that it will be no different with the next file: the file system cannot do it, or not between these folders,
/// or the system forbids it.
fn is_for_all(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|errno| {
        [Errno::OPNOTSUPP, Errno::NOTTY, Errno::NOSYS, Errno::INVAL, Errno::XDEV, Errno::PERM].contains(&errno)
    })
}

/// If it stays, whoever writes the file next says that it is in the way.
fn discard(path: &Path) {
    let _ = fs::remove_file(path);
}
