//! The service's output, in files of bounded size: `current`, and before it `1`, `2`, newest first.

use std::{
    fs::{self, File},
    io::{self, PipeWriter, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use longshore_schemas::events::LogRotation;

const MIB: u64 = 1024 * 1024;
/// Of all files together, where a run does not say otherwise.
pub const LOG_BYTES_USUAL: u64 = 30 * MIB;
const BEGIN: &str = "[longshore] begins: ";

/// A log that several runs of a service write to. Cheap to clone.
#[derive(Clone)]
pub(super) struct RotatedLog(Arc<Mutex<Open>>);

struct Open {
    folder: PathBuf,
    file: File,
    bytes: u64,
    file_bytes_max: u64,
    /// Besides the one that is written.
    old_files: u32,
    /// The last line has no end yet.
    in_line: bool,
}

/// What a service says is not for every user of the machine.
const LOG_MODE: u32 = 0o640;

impl RotatedLog {
    pub(super) fn open(folder: &Path, rotation: &LogRotation) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let file = File::options().create(true).append(true).mode(LOG_MODE).open(folder.join("current"))?;
        let bytes = file.metadata()?.len();
        let (file_bytes_max, old_files) = (u64::from(rotation.file_mib.max(1)) * MIB, rotation.files.max(1) - 1);
        let open = Open { folder: folder.to_owned(), file, bytes, file_bytes_max, old_files, in_line: false };
        open.forget_surplus();
        Ok(Self(Arc::new(Mutex::new(open))))
    }

    /// Marks where the output of what is run now begins.
    pub(super) fn begin(&self, what: &str) {
        self.line(&format!("{BEGIN}{what}"));
    }

    /// A line of the shim's own.
    pub(super) fn note(&self, text: &str) {
        self.line(&format!("[longshore] {text}"));
    }

    fn line(&self, line: &str) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = if open.in_line { "\n" } else { "" };
        open.write(format!("{before}{line}\n").as_bytes());
    }

    /// A pipe whose bytes go to the log until its last writer is closed, which ends the thread.
    pub(super) fn writer(&self) -> io::Result<(PipeWriter, JoinHandle<()>)> {
        let (mut reader, writer) = io::pipe()?;
        let log = self.clone();
        let copying = std::thread::Builder::new().name("log".into()).spawn(move || {
            let mut block = vec![0; 16 * 1024];
            while let Ok(count @ 1..) = reader.read(&mut block) {
                log.0.lock().unwrap_or_else(PoisonError::into_inner).write(&block[..count]);
            }
        })?;
        Ok((writer, copying))
    }
}

impl Open {
    /// A full disk loses output, never the service.
    fn write(&mut self, bytes: &[u8]) {
        if self.bytes > 0 && self.bytes + bytes.len() as u64 > self.file_bytes_max && self.rotate().is_err() {
            return;
        }
        if self.file.write_all(bytes).is_ok() {
            self.bytes += bytes.len() as u64;
            self.in_line = bytes.last().is_some_and(|byte| *byte != b'\n');
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.old_files).rev() {
            if self.named(number).exists() {
                fs::rename(self.named(number), self.named(number + 1))?;
            }
        }
        let current = self.folder.join("current");
        if self.old_files > 0 {
            fs::rename(&current, self.named(1))?;
        } else {
            fs::remove_file(&current)?;
        }
        self.file = File::options().create(true).append(true).mode(LOG_MODE).open(&current)?;
        self.bytes = 0;
        Ok(())
    }

    fn named(&self, number: u32) -> PathBuf {
        self.folder.join(number.to_string())
    }

    /// A run before this one may have kept more files.
    fn forget_surplus(&self) {
        let surplus = (self.old_files + 1..).map(|number| self.named(number)).take_while(|file| file.exists());
        for file in surplus {
            // One that stays does no harm.
            let _ = fs::remove_file(file);
        }
    }
}

/// The last lines of what the release wrote, or as much of them as fits in a message.
pub(super) fn end(folder: &Path, lines: usize) -> String {
    const END_BYTES: u64 = 1024;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(folder.join("current"))?;
        let from = file.metadata()?.len().saturating_sub(END_BYTES);
        io::Seek::seek(&mut file, io::SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(END_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let own = text.rsplit_once(BEGIN).map_or(&*text, |(_, own)| own.split_once('\n').map_or("", |(_, own)| own));
    let all: Vec<&str> = own.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The last whole lines of all that the service ever wrote here, of so many bytes at most.
pub(super) fn tail(folder: &Path, bytes_max: u64) -> io::Result<String> {
    let (mut tail, mut is_cut) = (Vec::new(), false);
    let older = (1..).map(|number: u32| number.to_string());
    for name in std::iter::once("current".to_owned()).chain(older) {
        let mut file = match File::open(folder.join(&name)) {
            Ok(file) => file,
            // It may be just the moment between two files.
            Err(error) if error.kind() == io::ErrorKind::NotFound && name == "current" => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        };
        let (bytes, room) = (file.metadata()?.len(), bytes_max - tail.len() as u64);
        io::Seek::seek(&mut file, io::SeekFrom::Start(bytes.saturating_sub(room)))?;
        let mut part = Vec::new();
        // What is written meanwhile is left out.
        file.take(bytes.min(room)).read_to_end(&mut part)?;
        part.append(&mut tail);
        tail = part;
        is_cut = bytes > room;
        if is_cut || tail.len() as u64 == bytes_max {
            break;
        }
    }
    let text = String::from_utf8_lossy(&tail);
    let whole = text.split_once('\n').map(|(_, whole)| whole).filter(|whole| is_cut && !whole.is_empty());
    Ok(whole.unwrap_or(&text).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_goes_over_files_and_begins_with_a_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("written");
        let tail = |bytes| tail(folder.path(), bytes).expect("read");
        assert_eq!(tail(100), "", "nothing was written yet");
        write("current", "three\nfour\n");
        assert_eq!(tail(100), "three\nfour\n");
        write("1", "one\ntwo\n");
        let table = [
            (100, "one\ntwo\nthree\nfour\n"),
            (19, "one\ntwo\nthree\nfour\n"),
            (18, "two\nthree\nfour\n"),
            (6, "four\n"),
        ];
        for (bytes, expected) in table {
            assert_eq!(tail(bytes), expected, "{bytes}");
        }
        assert_eq!(tail(2), "r\n", "a line that is longer than what is asked for is shown in part");
        fs::remove_file(folder.path().join("current")).expect("removed");
        assert_eq!(tail(100), "one\ntwo\n", "between two files");
        write("current", &"\u{fffd}".repeat(10));
        assert!(tail(5).ends_with('\u{fffd}'));
    }

    #[test]
    fn the_log_is_bounded_and_its_end_is_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = || fs::read_dir(folder.path()).expect("a folder").map(|entry| entry.expect("an entry"));
        let block = vec![b'x'; 512 * 1024];
        for (file_mib, kept) in [(2, 3), (1, 2), (1, 1)] {
            let log = RotatedLog::open(folder.path(), &LogRotation { file_mib, files: kept }).expect("opens");
            for _ in 0..20 {
                log.0.lock().expect("sound").write(&block);
            }
            log.note("the end");
            let bytes: u64 = files().map(|entry| entry.metadata().expect("there").len()).sum();
            assert!(bytes <= u64::from(file_mib * kept) * MIB, "{bytes} in {kept} files");
            assert_eq!(files().count(), kept as usize);
            assert_eq!(end(folder.path(), 1), "[longshore] the end");
            log.begin("a release");
            log.note("a new one");
            assert_eq!(end(folder.path(), 5), "[longshore] a new one", "of this release alone");
        }
    }
}
