//! The tracker that all BitTorrent clients of a benchmark are given: it tells each of all others, at once. (A tracker of the world's is made
//! for strangers and the open net, and refuses what a lab needs.)

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    net::{IpAddr, SocketAddrV4, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result};

/// Seconds until a client asks again.
const INTERVAL: u32 = 2;
const PATIENCE: Duration = Duration::from_secs(2);

/// Answers whoever comes, and never ends.
pub fn serve(listener: &TcpListener) {
    let mut peers = BTreeSet::new();
    for stream in listener.incoming() {
        // A client that says nothing sensible gets nothing.
        let _ = stream.map_err(anyhow::Error::from).and_then(|stream| answer(&stream, &mut peers));
    }
}

fn answer(mut stream: &TcpStream, peers: &mut BTreeSet<SocketAddrV4>) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().context("a request")??;
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    let query = request.split_once('?').map_or("", |(_, query)| query).split(' ').next().unwrap_or_default();
    let port = query.split('&').find_map(|pair| pair.strip_prefix("port=")).context("a port")?.parse()?;
    let IpAddr::V4(address) = stream.peer_addr()?.ip() else { return Ok(()) };
    let own = SocketAddrV4::new(address, port);
    peers.insert(own);
    let compact: Vec<u8> = peers
        .iter()
        .filter(|peer| **peer != own)
        .flat_map(|peer| [&peer.ip().octets()[..], &peer.port().to_be_bytes()].concat())
        .collect();
    let mut body = format!("d8:intervali{INTERVAL}e12:min intervali{INTERVAL}e5:peers{}:", compact.len()).into_bytes();
    body.extend(compact);
    body.push(b'e');
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), &body].concat())?;
    Ok(())
}
