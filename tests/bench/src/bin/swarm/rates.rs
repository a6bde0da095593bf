//! What the lab's links really carry of a program's bytes, measured with nothing but TCP.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::lab::{BUCKET, Guarded, Lab};

const PORT: u16 = 9_000;
/// Until TCP has found its rate, and then for so long.
const WARM: Duration = Duration::from_millis(1_000);
const MEASURED: Duration = Duration::from_millis(2_500);

/// Bytes of payload a second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    pub(crate) node: f64,
    pub(crate) uplink: f64,
    pub(crate) bucket: f64,
    /// Of all bytes on a wire, those that are payload.
    pub(crate) payload_share: f64,
}

impl Rates {
    pub(crate) fn measure(lab: &Lab) -> Result<Self> {
        let last = lab.layout.nodes_per_rack - 1;
        let second_rack = lab.layout.nodes_per_rack;
        let node = between(lab, &[(Some(0), 1)])?;
        let before = lab.counted()?.racks[1];
        let (begun, uplink) =
            (Instant::now(), between(lab, &[(Some(0), second_rack), (Some(last), second_rack + last)])?);
        let wire = (lab.counted()?.racks[1] - before) as f64;
        let payload_share = (uplink.whole / wire).min(1.0);
        ensure!(begun.elapsed() > MEASURED, "the measurement ended early");
        // More receivers than the bucket can serve, no rack with more than its uplink carries.
        let all: Vec<_> = (0..lab.layout.racks).map(|rack| (None, rack * lab.layout.nodes_per_rack)).collect();
        let more: Vec<_> = all.iter().map(|(from, to)| (*from, to + 1)).collect();
        let bucket = between(lab, &[all, more].concat())?;
        Ok(Self { node: node.rate, uplink: uplink.rate, bucket: bucket.rate, payload_share })
    }

    /// No tool can have all nodes done before this.
    pub(crate) fn bound(&self, lab: &Lab, bytes: u64) -> f64 {
        let (file, nodes) = (bytes as f64, lab.layout.nodes() as f64);
        let all_uploads = self.bucket + nodes * self.node;
        [file / self.bucket, file / self.node, file / self.uplink, nodes * file / all_uploads]
            .into_iter()
            .fold(0.0, f64::max)
    }
}

struct Carried {
    /// Bytes a second, of all together, once they were warm.
    rate: f64,
    /// All bytes, those of the warming too.
    whole: f64,
}

/// All at once, from the node or the bucket.
fn between(lab: &Lab, pairs: &[(Option<usize>, usize)]) -> Result<Carried> {
    let own = std::env::current_exe()?;
    let mut sources = Vec::new();
    let mut listening: Vec<Option<usize>> = pairs.iter().map(|(from, _)| *from).collect();
    listening.dedup();
    for from in listening {
        sources.push(Guarded(lab.command(from, &own).args(["play", "source"]).spawn()?));
    }
    let mut sinks = Vec::new();
    for (from, to) in pairs {
        let address = from.map_or_else(|| BUCKET.to_owned(), |node| lab.address(node));
        let mut sink = lab.command(Some(*to), &own);
        sinks.push(sink.args(["play", "sink", &address]).stdout(Stdio::piped()).spawn()?);
    }
    let mut carried = Carried { rate: 0.0, whole: 0.0 };
    for sink in sinks {
        let output = sink.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (rate, whole) = text.trim().split_once(' ').with_context(|| format!("a sink said {text:?}"))?;
        carried.rate += rate.parse::<f64>()?;
        carried.whole += whole.parse::<f64>()?;
    }
    Ok(carried)
}

/// Sends to whoever connects, until it is ended.
pub(crate) fn source() -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", PORT))?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        std::thread::spawn(move || {
            let block = vec![0; 64 * 1024];
            while stream.write_all(&block).is_ok() {}
        });
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "it is how a child tells its result")]
pub(crate) fn sink(address: &str) -> Result<()> {
    let begun = Instant::now();
    let mut stream = loop {
        match TcpStream::connect((address, PORT)) {
            Ok(stream) => break stream,
            Err(error) => ensure!(begun.elapsed() < Duration::from_secs(10), "{address}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let (mut block, mut whole, mut warm) = (vec![0; 64 * 1024], 0u64, None);
    let connected = Instant::now();
    loop {
        whole += stream.read(&mut block)? as u64;
        if connected.elapsed() >= WARM && warm.is_none() {
            warm = Some((Instant::now(), whole));
        }
        if let Some((since, before)) = warm
            && since.elapsed() >= MEASURED
        {
            println!("{} {whole}", (whole - before) as f64 / since.elapsed().as_secs_f64());
            return Ok(());
        }
    }
}
