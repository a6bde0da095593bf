//! The service's output, in files of bounded size: `current`, and before it `1`, `2`, newest first.

use std::{
    fs::{self, File},
    io::{self, PipeWriter, Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

const FILE_BYTES_MAX: u64 = 10 * 1024 * 1024;
const OLD_FILES: u32 = 2;
/// Of all files together.
pub const LOG_BYTES_MAX: u64 = FILE_BYTES_MAX * (OLD_FILES as u64 + 1);
const BEGIN: &str = "[longshore] a release starts";

/// A log that several runs of a service write to. Cheap to clone.
#[derive(Clone)]
pub(super) struct RotatedLog(Arc<Mutex<Open>>);

struct Open {
    folder: PathBuf,
    file: File,
    bytes: u64,
    /// The last line has no end yet.
    in_line: bool,
}

impl RotatedLog {
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let file = File::options().create(true).append(true).open(folder.join("current"))?;
        let bytes = file.metadata()?.len();
        Ok(Self(Arc::new(Mutex::new(Open { folder: folder.to_owned(), file, bytes, in_line: false }))))
    }

    /// Marks where the output of this shim's service begins.
    pub(super) fn begin(&self) {
        self.line(BEGIN);
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

    /// A pipe whose bytes go to the log until its last writer is closed.
    pub(super) fn writer(&self) -> io::Result<PipeWriter> {
        let (mut reader, writer) = io::pipe()?;
        let log = self.clone();
        std::thread::Builder::new().name("log".into()).spawn(move || {
            let mut block = vec![0; 16 * 1024];
            while let Ok(count @ 1..) = reader.read(&mut block) {
                log.0.lock().unwrap_or_else(PoisonError::into_inner).write(&block[..count]);
            }
        })?;
        Ok(writer)
    }
}

impl Open {
    /// A full disk loses output, never the service.
    fn write(&mut self, bytes: &[u8]) {
        if self.bytes > 0 && self.bytes + bytes.len() as u64 > FILE_BYTES_MAX && self.rotate().is_err() {
            return;
        }
        if self.file.write_all(bytes).is_ok() {
            self.bytes += bytes.len() as u64;
            self.in_line = bytes.last().is_some_and(|byte| *byte != b'\n');
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        let named = |number: u32| self.folder.join(number.to_string());
        for number in (1..OLD_FILES).rev() {
            if named(number).exists() {
                fs::rename(named(number), named(number + 1))?;
            }
        }
        fs::rename(self.folder.join("current"), named(1))?;
        self.file = File::options().create(true).append(true).open(self.folder.join("current"))?;
        self.bytes = 0;
        Ok(())
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
    let own = text.rsplit_once(BEGIN).map_or(&*text, |(_, own)| own.trim_start());
    let all: Vec<&str> = own.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_bounded_and_its_end_is_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = RotatedLog::open(folder.path()).expect("opens");
        let block = vec![b'x'; 1024 * 1024];
        for _ in 0..45 {
            log.0.lock().expect("sound").write(&block);
        }
        log.note("the end");
        let bytes: u64 = fs::read_dir(folder.path())
            .expect("a folder")
            .map(|e| e.expect("entry").metadata().expect("there").len())
            .sum();
        assert!(bytes <= FILE_BYTES_MAX * u64::from(OLD_FILES + 1), "{bytes}");
        assert_eq!(end(folder.path(), 1), "[longshore] the end");
        log.begin();
        log.note("a new one");
        assert_eq!(end(folder.path(), 5), "[longshore] a new one", "of this release alone");
    }
}
