//! Files and folders, and what of them is durable.
//!
//! Each file keeps what it holds, what it held when it was last synced, and the writes in between. Changes of names wait
//! in one list, in their order, until one of the folders that they touch is synced.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::{OsStr, OsString},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::cut::{self, Change, Cut, Dice, Write};

pub const ROOT: u64 = 1;

/// Why something cannot be done, as errno numbers have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    NotFound,
    Exists,
    NotAFolder,
    IsAFolder,
    NotEmpty,
    Unsupported,
}

pub type Answer<T> = Result<T, Refusal>;

#[derive(Debug, Clone)]
pub enum Content {
    File(FileContent),
    Link(OsString),
    Folder(Folder),
}

#[derive(Debug, Clone, Default)]
pub struct FileContent {
    now: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Write>,
}

#[derive(Debug, Clone, Default)]
pub struct Folder {
    now: BTreeMap<OsString, u64>,
    durable: BTreeMap<OsString, u64>,
}

#[derive(Debug, Clone)]
pub struct Inode {
    pub content: Content,
    /// Permission bits.
    pub mode: u32,
    pub modified: SystemTime,
    pub links: u32,
}

impl Inode {
    fn new(content: Content, mode: u32) -> Self {
        Self { content, mode: mode & 0o7777, modified: SystemTime::now(), links: 1 }
    }

    pub fn bytes(&self) -> u64 {
        match &self.content {
            Content::File(file) => file.now.len() as u64,
            Content::Link(target) => target.len() as u64,
            Content::Folder(_) => 4096,
        }
    }
}

/// What was written and not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unsynced {
    /// Changes of names.
    pub names: usize,
    /// Files with writes.
    pub files: usize,
}

impl std::ops::AddAssign for Unsynced {
    fn add_assign(&mut self, other: Self) {
        self.names += other.names;
        self.files += other.files;
    }
}

/// Everything of one file system.
#[derive(Debug, Clone)]
pub struct Disk {
    inodes: HashMap<u64, Inode>,
    next: u64,
    unsynced: Vec<Change>,
}

impl Default for Disk {
    fn default() -> Self {
        let root = Inode::new(Content::Folder(Folder::default()), 0o755);
        Self { inodes: HashMap::from([(ROOT, root)]), next: ROOT + 1, unsynced: Vec::new() }
    }
}

impl Disk {
    pub fn inode(&self, number: u64) -> Answer<&Inode> {
        self.inodes.get(&number).ok_or(Refusal::NotFound)
    }

    pub fn inode_mut(&mut self, number: u64) -> Answer<&mut Inode> {
        self.inodes.get_mut(&number).ok_or(Refusal::NotFound)
    }

    fn folder(&self, number: u64) -> Answer<&Folder> {
        match &self.inode(number)?.content {
            Content::Folder(folder) => Ok(folder),
            _ => Err(Refusal::NotAFolder),
        }
    }

    fn file_mut(&mut self, number: u64) -> Answer<&mut FileContent> {
        match &mut self.inode_mut(number)?.content {
            Content::File(file) => Ok(file),
            Content::Folder(_) => Err(Refusal::IsAFolder),
            Content::Link(_) => Err(Refusal::Unsupported),
        }
    }

    pub fn lookup(&self, folder: u64, name: &OsStr) -> Answer<u64> {
        self.folder(folder)?.now.get(name).copied().ok_or(Refusal::NotFound)
    }

    /// Names and what they stand for, sorted.
    pub fn list(&self, folder: u64) -> Answer<Vec<(OsString, u64)>> {
        Ok(self.folder(folder)?.now.iter().map(|(name, inode)| (name.clone(), *inode)).collect())
    }

    pub fn create(&mut self, folder: u64, name: &OsStr, content: Content, mode: u32) -> Answer<u64> {
        if self.folder(folder)?.now.contains_key(name) {
            return Err(Refusal::Exists);
        }
        let number = self.next;
        self.next += 1;
        self.inodes.insert(number, Inode::new(content, mode));
        self.change(vec![(folder, name.to_owned(), Some(number))]);
        Ok(number)
    }

    pub fn link(&mut self, inode: u64, folder: u64, name: &OsStr) -> Answer<()> {
        if self.folder(folder)?.now.contains_key(name) {
            return Err(Refusal::Exists);
        }
        self.inode_mut(inode)?.links += 1;
        self.change(vec![(folder, name.to_owned(), Some(inode))]);
        Ok(())
    }

    pub fn unlink(&mut self, folder: u64, name: &OsStr) -> Answer<()> {
        let number = self.lookup(folder, name)?;
        if matches!(self.inode(number)?.content, Content::Folder(_)) {
            return Err(Refusal::IsAFolder);
        }
        self.change(vec![(folder, name.to_owned(), None)]);
        self.unlinked(number);
        Ok(())
    }

    pub fn remove_folder(&mut self, folder: u64, name: &OsStr) -> Answer<()> {
        let number = self.lookup(folder, name)?;
        if !self.folder(number)?.now.is_empty() {
            return Err(Refusal::NotEmpty);
        }
        self.change(vec![(folder, name.to_owned(), None)]);
        self.unlinked(number);
        Ok(())
    }

    /// All at once, even between two folders, as every journal has it.
    pub fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr), replace: bool) -> Answer<()> {
        let number = self.lookup(from.0, from.1)?;
        let replaced = self.lookup(to.0, to.1).ok();
        if replaced == Some(number) {
            return Ok(());
        }
        if let Some(replaced) = replaced {
            if !replace {
                return Err(Refusal::Exists);
            }
            let is_folder = |number| Ok(matches!(self.inode(number)?.content, Content::Folder(_)));
            match (is_folder(number)?, is_folder(replaced)?) {
                (true, false) => return Err(Refusal::NotAFolder),
                (false, true) => return Err(Refusal::IsAFolder),
                (true, true) if !self.folder(replaced)?.now.is_empty() => return Err(Refusal::NotEmpty),
                _ => {}
            }
        } else {
            self.folder(to.0)?;
        }
        self.change(vec![(from.0, from.1.to_owned(), None), (to.0, to.1.to_owned(), Some(number))]);
        if let Some(replaced) = replaced {
            self.unlinked(replaced);
        }
        Ok(())
    }

    fn change(&mut self, entries: Vec<(u64, OsString, Option<u64>)>) {
        for (folder, name, inode) in &entries {
            if let Some(Inode { content: Content::Folder(folder), modified, .. }) = self.inodes.get_mut(folder) {
                *modified = SystemTime::now();
                set(&mut folder.now, name, *inode);
            }
        }
        self.unsynced.push(Change { entries });
    }

    fn unlinked(&mut self, number: u64) {
        // The inode stays: it may be open, and after a cut its name may be back.
        if let Some(inode) = self.inodes.get_mut(&number) {
            inode.links = inode.links.saturating_sub(1);
        }
    }

    /// Empty beyond the end.
    pub fn read(&self, number: u64, offset: u64, bytes: u32) -> Answer<&[u8]> {
        let Content::File(file) = &self.inode(number)?.content else { return Err(Refusal::IsAFolder) };
        let length = file.now.len();
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(length);
        Ok(&file.now[start..start.saturating_add(bytes as usize).min(length)])
    }

    pub fn write(&mut self, number: u64, offset: u64, bytes: &[u8]) -> Answer<()> {
        self.store(number, Write::At(offset, bytes.to_vec()))
    }

    pub fn truncate(&mut self, number: u64, length: u64) -> Answer<()> {
        self.store(number, Write::Length(length))
    }

    fn store(&mut self, number: u64, write: Write) -> Answer<()> {
        let file = self.file_mut(number)?;
        write.apply(&mut file.now);
        file.unsynced.push(write);
        self.inode_mut(number)?.modified = SystemTime::now();
        Ok(())
    }

    /// Makes a file's content durable; of a folder, its names.
    pub fn sync(&mut self, number: u64) -> Answer<()> {
        match &mut self.inode_mut(number)?.content {
            Content::File(file) => {
                for write in file.unsynced.drain(..) {
                    write.apply(&mut file.durable);
                }
            }
            Content::Folder(_) => self.sync_names(number),
            Content::Link(_) => {}
        }
        Ok(())
    }

    fn sync_names(&mut self, folder: u64) {
        let touches = |change: &Change| change.entries.iter().any(|(touched, ..)| *touched == folder);
        let (synced, waiting) = std::mem::take(&mut self.unsynced).into_iter().partition::<Vec<_>, _>(touches);
        // A rename out of another folder is synced with this one. What that folder's list says of the same name from before
        // is outdated then, and must not come after it.
        let outdated: BTreeSet<(u64, OsString)> = synced
            .iter()
            .flat_map(|change| &change.entries)
            .filter(|(touched, ..)| *touched != folder)
            .map(|(touched, name, _)| (*touched, name.clone()))
            .collect();
        for change in synced {
            self.make_durable(change);
        }
        self.unsynced = waiting;
        if !outdated.is_empty() {
            for change in &mut self.unsynced {
                change.entries.retain(|(touched, name, _)| !outdated.contains(&(*touched, name.clone())));
            }
            // What the name stands for now comes last, whatever came between.
            let latest = outdated.into_iter().filter_map(|(touched, name)| {
                let Content::Folder(folder) = &self.inodes.get(&touched)?.content else { return None };
                let now = folder.now.get(&name).copied();
                (now != folder.durable.get(&name).copied()).then_some(Change { entries: vec![(touched, name, now)] })
            });
            let latest: Vec<Change> = latest.collect();
            self.unsynced.extend(latest);
        }
    }

    fn make_durable(&mut self, change: Change) {
        for (folder, name, inode) in change.entries {
            if let Some(Inode { content: Content::Folder(folder), .. }) = self.inodes.get_mut(&folder) {
                set(&mut folder.durable, &name, inode);
            }
        }
    }

    /// What a power cut at this moment could take.
    pub fn unsynced(&self) -> Unsynced {
        let names = self.unsynced.iter().filter(|change| !change.entries.is_empty()).count();
        let files = self
            .inodes
            .values()
            .filter(|inode| matches!(&inode.content, Content::File(file) if !file.unsynced.is_empty()));
        Unsynced { names, files: files.count() }
    }

    /// The power fails: what is durable is there, and of the rest what `cut` says.
    pub fn cut(&mut self, cut: Cut) {
        let seed = match cut {
            Cut::Everything => 0,
            Cut::Journal(seed) | Cut::Folders(seed) | Cut::Anything(seed) => seed,
        };
        let mut dice = Dice::new(seed);
        let unsynced = std::mem::take(&mut self.unsynced);
        for change in cut::survivors(unsynced, cut, &mut dice) {
            self.make_durable(change);
        }
        // In order, so that a seed gives the same again.
        let mut numbers: Vec<u64> = self.inodes.keys().copied().collect();
        numbers.sort_unstable();
        for number in numbers {
            match &mut self.inodes.get_mut(&number).expect("it was listed").content {
                Content::File(file) => {
                    if cut != Cut::Everything {
                        cut::content(&mut file.durable, &file.unsynced, &mut dice);
                    }
                    file.unsynced.clear();
                    file.now.clone_from(&file.durable);
                }
                Content::Folder(folder) => folder.now.clone_from(&folder.durable),
                Content::Link(_) => {}
            }
        }
        self.forget_unnamed();
    }

    /// Removes what no name leads to, and counts links anew.
    fn forget_unnamed(&mut self) {
        let (mut links, mut visit) = (HashMap::from([(ROOT, 1u32)]), vec![ROOT]);
        while let Some(number) = visit.pop() {
            let Some(Inode { content: Content::Folder(folder), .. }) = self.inodes.get(&number) else { continue };
            for inode in folder.now.values() {
                let count = links.entry(*inode).or_insert(0);
                *count += 1;
                if *count == 1 {
                    visit.push(*inode);
                }
            }
        }
        self.inodes.retain(|number, inode| {
            inode.links = links.get(number).copied().unwrap_or(0);
            inode.links > 0
        });
    }

    /// Bytes of all files, for whoever asks how full it is.
    pub fn bytes(&self) -> u64 {
        self.inodes.values().map(Inode::bytes).sum()
    }
}

fn set(names: &mut BTreeMap<OsString, u64>, name: &OsStr, inode: Option<u64>) {
    match inode {
        Some(inode) => drop(names.insert(name.to_owned(), inode)),
        None => drop(names.remove(name)),
    }
}

/// Seconds and nanoseconds since 1970.
pub(crate) fn since_epoch(time: SystemTime) -> (u64, u32) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_secs(), since.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(disk: &mut Disk, folder: u64, name: &str, bytes: &[u8]) -> u64 {
        let file = Content::File(FileContent::default());
        let number = disk.create(folder, OsStr::new(name), file, 0o644).expect("new");
        disk.write(number, 0, bytes).expect("a file");
        number
    }

    fn holds(disk: &Disk, folder: u64, name: &str) -> Option<Vec<u8>> {
        let number = disk.lookup(folder, OsStr::new(name)).ok()?;
        Some(disk.read(number, 0, u32::MAX).expect("a file").to_vec())
    }

    #[test]
    fn content_needs_its_files_sync_and_names_their_folders() {
        // Which syncs happen, and what is there after all else is lost.
        let table: [(bool, bool, Option<&[u8]>); 4] =
            [(false, false, None), (true, false, None), (false, true, Some(b"")), (true, true, Some(b"text"))];
        for (sync_file, sync_folder, expected) in table {
            let mut disk = Disk::default();
            let number = file(&mut disk, ROOT, "a", b"text");
            if sync_file {
                disk.sync(number).expect("there");
            }
            if sync_folder {
                disk.sync(ROOT).expect("there");
            }
            disk.write(number, 4, b" and more").expect("a file");
            disk.cut(Cut::Everything);
            assert_eq!(holds(&disk, ROOT, "a").as_deref(), expected, "{sync_file} {sync_folder}");
        }
    }

    #[test]
    fn a_replaced_file_is_old_or_new_and_never_gone() {
        let (mut old, mut new, mut empty) = (0, 0, 0);
        for seed in 0..200 {
            let mut disk = Disk::default();
            let number = file(&mut disk, ROOT, "a", b"old");
            disk.sync(number).expect("there");
            disk.sync(ROOT).expect("there");
            let number = file(&mut disk, ROOT, "a.new", b"new");
            // Every other time, the mistake of not syncing before the rename.
            if seed % 2 == 0 {
                disk.sync(number).expect("there");
            }
            disk.rename((ROOT, OsStr::new("a.new")), (ROOT, OsStr::new("a")), true).expect("there");
            disk.cut(if seed % 4 < 2 { Cut::Journal(seed) } else { Cut::Anything(seed) });
            match holds(&disk, ROOT, "a").as_deref() {
                Some(b"old") => old += 1,
                Some(b"new") => new += 1,
                Some(_) if seed % 2 == 1 => empty += 1,
                other => panic!("seed {seed}: {other:?}"),
            }
        }
        assert!(old > 20 && new > 20 && empty > 5, "{old} {new} {empty}");
    }

    #[test]
    fn a_folder_is_lost_with_its_files_unless_its_parent_is_synced() {
        for sync_parent in [false, true] {
            let mut disk = Disk::default();
            let folder = disk.create(ROOT, OsStr::new("d"), Content::Folder(Folder::default()), 0o755).expect("new");
            let number = file(&mut disk, folder, "a", b"text");
            disk.sync(number).expect("there");
            disk.sync(folder).expect("there");
            if sync_parent {
                disk.sync(ROOT).expect("there");
            }
            disk.cut(Cut::Everything);
            assert_eq!(disk.lookup(ROOT, OsStr::new("d")).is_ok(), sync_parent);
            assert_eq!(disk.bytes() > 4096, sync_parent, "what no name leads to is gone");
        }
    }

    #[test]
    fn a_rename_between_folders_is_synced_with_either_and_not_undone_by_the_other() {
        let mut disk = Disk::default();
        let target = disk.create(ROOT, OsStr::new("d"), Content::Folder(Folder::default()), 0o755).expect("new");
        disk.sync(ROOT).expect("there");
        let number = file(&mut disk, ROOT, "a", b"text");
        disk.sync(number).expect("there");
        disk.rename((ROOT, OsStr::new("a")), (target, OsStr::new("b")), true).expect("there");
        disk.sync(target).expect("there");
        disk.sync(ROOT).expect("there");
        disk.cut(Cut::Everything);
        assert_eq!(holds(&disk, target, "b").as_deref(), Some(b"text".as_slice()));
        assert_eq!(holds(&disk, ROOT, "a"), None);
    }
}
