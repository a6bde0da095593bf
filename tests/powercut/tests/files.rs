//! The file system does what programs expect of one, and forgets what they may not expect of it.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
};

use longshore_powercut::{Cut, PowerCut};
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};

#[test]
fn it_is_a_file_system() {
    let outside = tempfile::tempdir().unwrap();
    let disk = PowerCut::mount(&outside.path().join("disk")).unwrap();
    let root = disk.folder();
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
    fs::write(root.join("a/b/large"), &bytes).unwrap();
    assert!(fs::read(root.join("a/b/large")).unwrap() == bytes);
    let mut names: Vec<_> = fs::read_dir(root.join("a/b")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["c", "large"]);

    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(root.join("f")).unwrap();
    file.write_all_at(b"xyz", 10_000).unwrap();
    file.seek(SeekFrom::End(0)).unwrap();
    file.write_all(b"!").unwrap();
    assert_eq!(file.metadata().unwrap().len(), 10_004);
    file.set_len(10_002).unwrap();
    let mut end = [9; 3];
    assert_eq!(file.read_at(&mut end, 9_999).unwrap(), 3);
    assert_eq!(&end, b"\0xy");
    let refused = fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap_err();
    assert_eq!(refused, rustix::io::Errno::OPNOTSUPP);
    assert_eq!(File::create_new(root.join("f")).unwrap_err().kind(), ErrorKind::AlreadyExists);

    let again = File::open(root.join("f")).unwrap();
    flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert!(flock(&again, FlockOperation::NonBlockingLockExclusive).is_err());

    fs::hard_link(root.join("f"), root.join("g")).unwrap();
    assert_eq!(fs::metadata(root.join("g")).unwrap().nlink(), 2);
    fs::remove_file(root.join("f")).unwrap();
    fs::rename(root.join("g"), root.join("a/h")).unwrap();
    assert_eq!(fs::metadata(root.join("a/h")).unwrap().len(), 10_002);
    file.write_all_at(b"open", 0).unwrap();
    assert_eq!(&fs::read(root.join("a/h")).unwrap()[..4], b"open");
    symlink("a/h", root.join("l")).unwrap();
    assert_eq!(fs::read_link(root.join("l")).unwrap().to_str(), Some("a/h"));
    fs::set_permissions(root.join("a/h"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fs::metadata(root.join("l")).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::remove_dir(root.join("a")).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
    fs::remove_dir_all(root.join("a")).unwrap();
    assert!(!root.join("a").exists());
    let many: Vec<String> = (0..2_000).map(|n| format!("a-rather-long-name-of-a-file-{n:04}")).collect();
    many.iter().for_each(|name| drop(File::create(root.join(name)).unwrap()));
    let listed = fs::read_dir(root).unwrap().filter(|e| e.as_ref().unwrap().file_name().len() > 20).count();
    assert_eq!(listed, many.len());
}

#[test]
fn what_was_not_synced_is_lost() {
    let outside = tempfile::tempdir().unwrap();
    let mut disk = PowerCut::mount(&outside.path().join("disk")).unwrap();
    let root = disk.folder().to_owned();
    let mut synced = File::create(root.join("synced")).unwrap();
    synced.write_all(b"synced").unwrap();
    synced.sync_data().unwrap();
    synced.write_all(b" and not").unwrap();
    fs::write(root.join("named"), b"content").unwrap();
    File::open(&root).unwrap().sync_all().unwrap();
    fs::write(root.join("unnamed"), b"content").unwrap();
    fs::remove_file(root.join("synced")).unwrap();
    assert!(disk.cut(Cut::Everything).is_err(), "a file is open");
    drop(synced);
    disk.cut(Cut::Everything).unwrap();
    assert_eq!(fs::read(root.join("synced")).unwrap(), b"synced");
    assert_eq!(fs::read(root.join("named")).unwrap(), b"");
    assert!(!root.join("unnamed").exists());
}
