//! The kernel's side of the file system: requests from `/dev/fuse`, answered one after the other.
//!
//! The numbers and layouts are those of `linux/fuse.h`, version 7.31 or later. What is not answered here (locks, extended
//! attributes, allocation) the kernel does itself, or tells the program that there is no such thing.

use std::{
    ffi::OsStr,
    fs::File,
    io::{Read, Write as _},
    os::unix::ffi::OsStrExt as _,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::io::Errno;

use crate::disk::{Answer, Content, Disk, Inode, ROOT, Refusal, since_epoch};

const MAJOR: u32 = 7;
const MINOR: u32 = 31;
/// Largest write that the kernel may send.
const WRITE_BYTES_MAX: u32 = 256 * 1024;
const BUFFER_BYTES: usize = WRITE_BYTES_MAX as usize + 64 * 1024;
/// How long the kernel may remember names and attributes: every change comes through it.
const REMEMBERED: Duration = Duration::from_secs(3_600);
const BLOCK_BYTES: u32 = 4096;
/// The size that the disk says it has.
const DISK_BYTES: u64 = 64 << 30;

const IN_HEADER_BYTES: usize = 40;
const OUT_HEADER_BYTES: usize = 16;

/// May be set at INIT: several reads at once, and writes larger than a page.
const ASYNC_READ: u32 = 1;
const BIG_WRITES: u32 = 1 << 5;
/// The file's size in the answer to INIT says how many pages a request may have.
const MAX_PAGES: u32 = 1 << 22;

const SET_MODE: u32 = 1;
const SET_SIZE: u32 = 1 << 3;
const SET_MODIFIED: u32 = 1 << 5;
const SET_MODIFIED_NOW: u32 = 1 << 8;
const NO_REPLACE: u32 = 1;

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFMT: u32 = 0o170_000;

/// Answers until the file system is unmounted.
pub(crate) fn serve(device: &File, disk: &Mutex<Disk>) {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = match (&*device).read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => length,
            // ENOENT: the request was interrupted before it was read.
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::INTR | Errno::AGAIN | Errno::NOENT) => continue,
                // ENODEV: unmounted.
                _ => return,
            },
        };
        let Some(request) = Request::read(&buffer[..length]) else { return };
        let answer = {
            let mut disk = disk.lock().unwrap_or_else(PoisonError::into_inner);
            answer(&mut disk, &request)
        };
        let answer = match answer {
            Some(Ok(body)) => frame(request.unique, 0, &body),
            Some(Err(errno)) => frame(request.unique, -errno.raw_os_error(), &[]),
            None => continue,
        };
        // One that was interrupted does not want its answer any more.
        let _ = (&*device).write_all(&answer);
    }
}

struct Request<'a> {
    opcode: u32,
    unique: u64,
    inode: u64,
    body: &'a [u8],
}

impl<'a> Request<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let (header, body) = bytes.split_at_checked(IN_HEADER_BYTES)?;
        Some(Self { opcode: u32_at(header, 4)?, unique: u64_at(header, 8)?, inode: u64_at(header, 16)?, body })
    }

    fn u32(&self, at: usize) -> Reply<u32> {
        u32_at(self.body, at).ok_or(Errno::INVAL)
    }

    fn u64(&self, at: usize) -> Reply<u64> {
        u64_at(self.body, at).ok_or(Errno::INVAL)
    }

    /// The names behind the fixed part; each ends with a zero.
    fn names(&self, fixed: usize) -> Reply<impl Iterator<Item = &'a OsStr>> {
        let names = self.body.get(fixed..).ok_or(Errno::INVAL)?;
        Ok(names.split(|byte| *byte == 0).map(OsStr::from_bytes))
    }

    fn name(&self, fixed: usize) -> Reply<&'a OsStr> {
        self.names(fixed)?.next().ok_or(Errno::INVAL)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

type Reply<T> = Result<T, Errno>;

fn frame(unique: u64, error: i32, body: &[u8]) -> Vec<u8> {
    let mut out = Out::default();
    out.u32((OUT_HEADER_BYTES + body.len()) as u32).u32(error.cast_unsigned()).u64(unique).bytes(body);
    out.0
}

#[derive(Default)]
struct Out(Vec<u8>);

impl Out {
    fn u16(&mut self, number: u16) -> &mut Self {
        self.bytes(&number.to_ne_bytes())
    }

    fn u32(&mut self, number: u32) -> &mut Self {
        self.bytes(&number.to_ne_bytes())
    }

    fn u64(&mut self, number: u64) -> &mut Self {
        self.bytes(&number.to_ne_bytes())
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn attributes(&mut self, number: u64, inode: &Inode) -> &mut Self {
        let (seconds, nanoseconds) = since_epoch(inode.modified);
        self.u64(number).u64(inode.bytes()).u64(inode.bytes().div_ceil(512));
        self.u64(seconds).u64(seconds).u64(seconds);
        self.u32(nanoseconds).u32(nanoseconds).u32(nanoseconds);
        self.u32(kind(inode) | inode.mode).u32(inode.links);
        // User, group, device.
        self.u32(0).u32(0).u32(0);
        self.u32(BLOCK_BYTES).u32(0)
    }

    fn entry(&mut self, number: u64, inode: &Inode) -> &mut Self {
        let remembered = REMEMBERED.as_secs();
        self.u64(number).u64(0).u64(remembered).u64(remembered).u32(0).u32(0);
        self.attributes(number, inode)
    }

    fn open(&mut self) -> &mut Self {
        self.u64(0).u32(0).u32(0)
    }
}

fn kind(inode: &Inode) -> u32 {
    match inode.content {
        Content::File(_) => S_IFREG,
        Content::Link(_) => S_IFLNK,
        Content::Folder(_) => S_IFDIR,
    }
}

impl From<Refusal> for Errno {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotFound => Self::NOENT,
            Refusal::Exists => Self::EXIST,
            Refusal::NotAFolder => Self::NOTDIR,
            Refusal::IsAFolder => Self::ISDIR,
            Refusal::NotEmpty => Self::NOTEMPTY,
            Refusal::Unsupported => Self::OPNOTSUPP,
        }
    }
}

/// None where the kernel expects no answer.
fn answer(disk: &mut Disk, request: &Request<'_>) -> Option<Reply<Vec<u8>>> {
    let mut out = Out::default();
    let done = match request.opcode {
        // FORGET, INTERRUPT and BATCH_FORGET: inodes live until the next cut, and no request takes long.
        2 | 36 | 42 => return None,
        26 => init(request, &mut out),
        // DESTROY.
        38 => Ok(()),
        17 => {
            statfs(disk, &mut out);
            Ok(())
        }
        1 | 3 | 4 | 5 | 14 | 15 | 18 | 25 | 27 | 28 | 29 => look(disk, request, &mut out),
        6 | 8 | 9 | 10 | 11 | 12 | 13 | 35 | 45 => rename_or_make(disk, request, &mut out),
        16 => write(disk, request, &mut out),
        // FSYNC and FSYNCDIR.
        20 | 30 => disk.sync(request.inode).map_err(Errno::from),
        _ => Err(Errno::NOSYS),
    };
    Some(done.map(|()| out.0))
}

fn init(request: &Request<'_>, out: &mut Out) -> Reply<()> {
    if request.u32(0)? != MAJOR {
        return Err(Errno::PROTO);
    }
    let (readahead, offered) = (request.u32(8)?, request.u32(12)?);
    let flags = offered & (ASYNC_READ | BIG_WRITES | MAX_PAGES);
    out.u32(MAJOR).u32(MINOR).u32(readahead).u32(flags);
    // Requests in the background, and when that is much; sizes, and one nanosecond as the unit of times.
    out.u16(16).u16(12).u32(WRITE_BYTES_MAX).u32(1);
    out.u16((WRITE_BYTES_MAX / BLOCK_BYTES) as u16).u16(0);
    out.bytes(&[0; 32]);
    Ok(())
}

fn statfs(disk: &Disk, out: &mut Out) {
    let blocks = DISK_BYTES / u64::from(BLOCK_BYTES);
    let free = blocks.saturating_sub(disk.bytes() / u64::from(BLOCK_BYTES));
    out.u64(blocks).u64(free).u64(free).u64(1 << 20).u64(1 << 20);
    out.u32(BLOCK_BYTES).u32(255).u32(BLOCK_BYTES).bytes(&[0; 28]);
}

fn look(disk: &mut Disk, request: &Request<'_>, out: &mut Out) -> Reply<()> {
    let number = request.inode;
    match request.opcode {
        // LOOKUP
        1 => {
            let found = disk.lookup(number, request.name(0)?)?;
            out.entry(found, disk.inode(found)?);
        }
        // GETATTR
        3 => {
            out.u64(REMEMBERED.as_secs()).u32(0).u32(0).attributes(number, disk.inode(number)?);
        }
        // SETATTR
        4 => {
            set_attributes(disk, request)?;
            out.u64(REMEMBERED.as_secs()).u32(0).u32(0).attributes(number, disk.inode(number)?);
        }
        // READLINK
        5 => match &disk.inode(number)?.content {
            Content::Link(target) => {
                out.bytes(target.as_bytes());
            }
            _ => return Err(Errno::INVAL),
        },
        // OPEN and OPENDIR
        14 | 27 => {
            disk.inode(number)?;
            out.open();
        }
        // READ
        15 => {
            out.bytes(disk.read(number, request.u64(8)?, request.u32(16)?)?);
        }
        // READDIR
        28 => list(disk, number, request.u64(8)?, request.u32(16)? as usize, out)?,
        // RELEASE, FLUSH, RELEASEDIR
        _ => {}
    }
    Ok(())
}

fn set_attributes(disk: &mut Disk, request: &Request<'_>) -> Reply<()> {
    let valid = request.u32(0)?;
    if valid & SET_SIZE != 0 {
        disk.truncate(request.inode, request.u64(16)?)?;
    }
    let (seconds, nanoseconds, mode) = (request.u64(40)?, request.u32(60)?, request.u32(68)?);
    let inode = disk.inode_mut(request.inode)?;
    if valid & SET_MODE != 0 {
        inode.mode = mode & 0o7777;
    }
    if valid & SET_MODIFIED_NOW != 0 {
        inode.modified = SystemTime::now();
    } else if valid & SET_MODIFIED != 0 {
        inode.modified = UNIX_EPOCH + Duration::new(seconds, nanoseconds.min(999_999_999));
    }
    Ok(())
}

/// Entries from the place `from` on, as many as fit.
fn list(disk: &Disk, folder: u64, from: u64, bytes_max: usize, out: &mut Out) -> Answer<()> {
    let dots = [(".".into(), folder), ("..".into(), ROOT)];
    let entries = dots.into_iter().chain(disk.list(folder)?);
    for (place, (name, number)) in (1..).zip(entries).skip(usize::try_from(from).unwrap_or(usize::MAX)) {
        let length = (24 + name.len()).next_multiple_of(8);
        if out.0.len() + length > bytes_max {
            break;
        }
        let kind = disk.inode(number).map_or(S_IFREG, kind);
        let end = out.0.len() + length;
        out.u64(number).u64(place).u32(name.len() as u32).u32(kind >> 12).bytes(name.as_bytes());
        out.0.resize(end, 0);
    }
    Ok(())
}

fn rename_or_make(disk: &mut Disk, request: &Request<'_>, out: &mut Out) -> Reply<()> {
    let folder = request.inode;
    let file = || Content::File(Default::default());
    let made = match request.opcode {
        // SYMLINK
        6 => {
            let mut names = request.names(0)?;
            let (Some(name), Some(target)) = (names.next(), names.next()) else { return Err(Errno::INVAL) };
            disk.create(folder, name, Content::Link(target.to_owned()), 0o777)?
        }
        // MKNOD
        8 if !matches!(request.u32(0)? & S_IFMT, 0 | S_IFREG) => return Err(Errno::OPNOTSUPP),
        8 => disk.create(folder, request.name(16)?, file(), request.u32(0)?)?,
        // MKDIR
        9 => disk.create(folder, request.name(8)?, Content::Folder(Default::default()), request.u32(0)?)?,
        // CREATE
        35 => disk.create(folder, request.name(16)?, file(), request.u32(4)?)?,
        // LINK
        13 => {
            let number = request.u64(0)?;
            disk.link(number, folder, request.name(8)?)?;
            number
        }
        // UNLINK, RMDIR
        10 => return Ok(disk.unlink(folder, request.name(0)?)?),
        11 => return Ok(disk.remove_folder(folder, request.name(0)?)?),
        // RENAME, RENAME2
        opcode => {
            let (fixed, flags) = if opcode == 45 { (16, request.u32(8)?) } else { (8, 0) };
            if flags & !NO_REPLACE != 0 {
                return Err(Errno::INVAL);
            }
            let mut names = request.names(fixed)?;
            let (Some(old), Some(new)) = (names.next(), names.next()) else { return Err(Errno::INVAL) };
            return Ok(disk.rename((folder, old), (request.u64(0)?, new), flags & NO_REPLACE == 0)?);
        }
    };
    out.entry(made, disk.inode(made)?);
    if request.opcode == 35 {
        out.open();
    }
    Ok(())
}

fn write(disk: &mut Disk, request: &Request<'_>, out: &mut Out) -> Reply<()> {
    const FIXED_BYTES: usize = 40;
    let (offset, length) = (request.u64(8)?, request.u32(16)?);
    let bytes = request.body.get(FIXED_BYTES..FIXED_BYTES + length as usize).ok_or(Errno::INVAL)?;
    disk.write(request.inode, offset, bytes)?;
    out.u32(length).u32(0);
    Ok(())
}
