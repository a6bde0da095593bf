//! Puts the built console into the binary: a table of every file under `producers/console/dist`.
//!
//! Where nobody built it (that takes Node.js), the table holds one page that says so.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

/// Larger than any console should be; a stray folder would make every binary large.
const CONSOLE_BYTES_MAX: u64 = 32 * 1024 * 1024;

const PLACEHOLDER: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Longshore</title>\
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:4em auto;padding:0 1em}</style>\
<h1>Longshore</h1><p>The console was built without Node.js: this binary holds no console. Install Node.js 20 or newer \
with npm, run <code>make console</code>, and build Longshore again.</p>\
<p>The API is at <code>/v1</code>, and the <code>longshore</code> command does all that the console does.</p></html>";

fn main() -> io::Result<()> {
    let api = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or_else(|| missing("CARGO_MANIFEST_DIR"))?);
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| missing("OUT_DIR"))?);
    let console = api.with_file_name("console");
    let dist = console.join("dist");
    if console.is_dir() && !dist.is_dir() {
        // An absent path would make cargo run this script, and build the crate, every time.
        let _ = fs::create_dir(&dist);
    }
    println!("cargo:rerun-if-changed=build.rs");
    if dist.is_dir() {
        println!("cargo:rerun-if-changed={}", dist.display());
    } else if console.is_dir() {
        println!("cargo:rerun-if-changed={}", console.display());
    }

    let mut files = Vec::new();
    if dist.join("index.html").is_file() {
        collect(&dist, &mut files)?;
    } else {
        let page = out.join("index.html");
        fs::write(&page, PLACEHOLDER)?;
        files.push(("/index.html".to_owned(), page));
    }
    files.sort();
    let mut table = "static FILES: &[(&str, &[u8])] = &[\n".to_owned();
    for (name, path) in files {
        table.push_str(&format!("    ({name:?}, include_bytes!({:?})),\n", path.display().to_string()));
    }
    table.push_str("];\n");
    fs::write(out.join("console.rs"), table)
}

fn collect(dist: &Path, files: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    let (mut folders, mut bytes) = (vec![dist.to_owned()], 0);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            bytes += fs::metadata(&path)?.len();
            let name = path.strip_prefix(dist).map_err(io::Error::other)?.display().to_string();
            files.push((format!("/{name}"), path));
        }
    }
    if bytes > CONSOLE_BYTES_MAX {
        return Err(io::Error::other(format!("the console has {bytes} bytes, more than {CONSOLE_BYTES_MAX}")));
    }
    Ok(())
}

fn missing(variable: &str) -> io::Error {
    io::Error::other(format!("{variable} is not set: cargo runs this"))
}
