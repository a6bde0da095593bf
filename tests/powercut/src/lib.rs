//! A file system that loses what was not synced, for tests of what claims to be durable.
//!
//! ```text
//! the program under test ──▶ kernel ──/dev/fuse──▶ `fuse` (protocol) ──▶ `disk`: what is there, and what is durable
//!                                                                          │
//!            PowerCut::cut, or after_cut for a copy ──▶ `cut`: what a disk may hold after the power failed
//! ```
//!
//! - [`disk`]: files and folders in memory, each with what of it was synced. Pure.
//! - [`cut`]: which of the rest survives: nothing, or whatever a seed says, in any order and torn. Pure.
//! - `fuse`: the kernel's protocol, as far as ordinary programs need it.
//!
//! A file's own sync makes its content durable, and nothing else: its name is durable once its folder is synced. That is
//! all that POSIX promises, and less than ext4 does.
//!
//! Deliberately not known here: what programs write.

pub mod cut;
pub mod disk;
mod fuse;

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use anyhow::{Context as _, Result, bail};

pub use self::cut::Cut;
use self::disk::Disk;

const DEVICE: &str = "/dev/fuse";

/// The mounted file system. Dropping it unmounts it, and what it held is gone.
pub struct PowerCut {
    folder: PathBuf,
    disk: Arc<Mutex<Disk>>,
    server: Option<JoinHandle<()>>,
}

impl PowerCut {
    /// Mounts an empty file system on a folder, which is made if it is not there.
    pub fn mount(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut mounted = Self { folder: folder.canonicalize()?, disk: Arc::default(), server: None };
        mounted.attach()?;
        Ok(mounted)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The power fails and comes back. Whoever used the file system must be dead: kill -9 and wait before this.
    pub fn cut(&mut self, cut: Cut) -> Result<()> {
        self.detach()?;
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).cut(cut);
        self.attach()
    }

    /// Another file system, as this one would be if the power failed at this moment. This one goes on.
    pub fn after_cut(&self, folder: &Path, cut: Cut) -> Result<Self> {
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner).clone();
        disk.cut(cut);
        std::fs::create_dir_all(folder)?;
        let mut mounted = Self { folder: folder.canonicalize()?, disk: Arc::new(Mutex::new(disk)), server: None };
        mounted.attach()?;
        Ok(mounted)
    }

    fn attach(&mut self) -> Result<()> {
        let device = File::options().read(true).write(true).open(DEVICE).with_context(|| {
            format!("tests of power cuts need {DEVICE}: load the kernel module fuse, and give the container the device")
        })?;
        // The kernel takes the number of an open file: that of the mount command's standard input.
        let options = "fd=0,rootmode=40755,user_id=0,group_id=0,allow_other,default_permissions";
        let output = Command::new("mount")
            .args(["-i", "-n", "-t", "fuse.powercut", "-o", options, "powercut"])
            .arg(&self.folder)
            .stdin(Stdio::from(device.try_clone()?))
            .output()
            .context("tests of power cuts need the command `mount`")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("tests of power cuts mount a file system, for which they must run as root: {}", said.trim());
        }
        let disk = self.disk.clone();
        let server = std::thread::Builder::new().name("powercut".to_owned());
        self.server = Some(server.spawn(move || fuse::serve(&device, &disk))?);
        Ok(())
    }

    fn detach(&mut self) -> Result<()> {
        let Some(server) = self.server.take() else { return Ok(()) };
        let output = Command::new("umount").arg("-n").arg(&self.folder).stdin(Stdio::null()).output()?;
        if !output.status.success() {
            // The server goes on: someone still uses it.
            self.server = Some(server);
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        if server.join().is_err() {
            bail!("the file system's thread has panicked");
        }
        Ok(())
    }
}

impl Drop for PowerCut {
    fn drop(&mut self) {
        if self.detach().is_err() {
            // Someone still uses it: it goes out of sight now, and away with its last user.
            let _ = Command::new("umount").args(["-n", "-l"]).arg(&self.folder).output();
        }
    }
}
