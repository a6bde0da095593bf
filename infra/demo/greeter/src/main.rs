//! The demo's service: a small HTTP server that answers with its version, and a generator of its assets.
//!
//!     greeter                     serve on PORT: / answers the version, /health 200, /assets the number of assets
//!     greeter assets DIR          write the assets that assets.txt describes into DIR
//!
//! The version is the text of `version.txt` at build time. A version that begins with `crash` exits at once.

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::ExitCode,
    thread,
    time::Duration,
};

const VERSION: &str = include_str!("../version.txt");
/// Lines of `COUNT BYTES SEED`, then of `INDEX SEED` for assets that differ.
const ASSETS: &str = include_str!("../assets.txt");

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => serve(),
        ["assets", folder] => write_assets(Path::new(folder)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "usage: greeter [assets DIR]")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("greeter: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    let version = VERSION.trim();
    if version.starts_with("crash") {
        return Err(io::Error::other(format!("version {version} cannot start: its configuration is missing")));
    }
    let port: u16 = env::var("PORT")
        .ok()
        .and_then(|port| port.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "PORT must be set to a port number"))?;
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    println!("greeter {version} listens on port {port}");
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            if let Err(error) = answer(stream, version) {
                eprintln!("greeter: {error}");
            }
        });
    }
    Ok(())
}

fn answer(stream: TcpStream, version: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(&stream);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let (status, body) = match request.split(' ').nth(1) {
        Some("/") => ("200 OK", format!("{version}\n")),
        Some("/health") => ("200 OK", "ok\n".to_owned()),
        Some("/assets") => ("200 OK", format!("{}\n", fs::read_dir("assets")?.count())),
        _ => ("404 Not Found", "not found\n".to_owned()),
    };
    let length = body.len();
    write!(
        &stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

fn write_assets(folder: &Path) -> io::Result<()> {
    let numbers = |line: &str| -> Vec<u64> { line.split_whitespace().filter_map(|n| n.parse().ok()).collect() };
    let mut lines = ASSETS.lines().map(numbers);
    let Some([count, bytes, seed]) = lines.next().and_then(|line| <[u64; 3]>::try_from(line).ok()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "assets.txt must begin with COUNT BYTES SEED"));
    };
    let changed: Vec<(u64, u64)> = lines.filter_map(|line| Some((*line.first()?, *line.get(1)?))).collect();
    fs::create_dir_all(folder)?;
    for index in 0..count {
        let own = changed.iter().find(|(changed, _)| *changed == index).map_or(seed, |(_, seed)| *seed);
        fs::write(folder.join(format!("asset-{index:03}.bin")), asset(own, index, bytes))?;
    }
    Ok(())
}

/// Pseudo-random bytes (xorshift64*), the same for the same seed and index.
fn asset(seed: u64, index: u64, bytes: u64) -> Vec<u8> {
    let mut state = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index.wrapping_add(1)).max(1);
    let mut content = Vec::with_capacity(bytes as usize + 8);
    while (content.len() as u64) < bytes {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        content.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    content.truncate(bytes as usize);
    content
}
