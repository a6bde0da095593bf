//! Stands between clients and a broker, and cuts connections right after the broker was told to end a transaction.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU8, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::watch,
};

/// EndTxn in Kafka's protocol.
const END_TRANSACTION: i16 = 26;
const FRAME_BYTES_MAX: u32 = 200 * 1024 * 1024;

/// What happens after the commit that was waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// This connection is cut, and the next one works.
    Once,
    /// Nothing goes through any more until the proxy is mended.
    ForGood,
}

#[derive(Clone)]
pub(crate) struct Proxy {
    address: String,
    listener: Arc<TcpListener>,
    state: Arc<State>,
}

struct State {
    /// 0: nothing is to be cut; 1: once; 2: for good.
    armed: AtomicU8,
    cut: AtomicBool,
    /// While true, every connection is closed.
    down: watch::Sender<bool>,
}

impl Proxy {
    pub(crate) async fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (down, _) = watch::channel(false);
        let state = State { armed: AtomicU8::new(0), cut: AtomicBool::new(false), down };
        Self { address, listener: Arc::new(listener), state: Arc::new(state) }
    }

    pub(crate) fn address(&self) -> String {
        self.address.clone()
    }

    /// Forwards to this broker from now on.
    pub(crate) fn serve(&self, broker: &str) {
        let (proxy, broker) = (self.clone(), broker.to_owned());
        tokio::spawn(async move {
            while let Ok((client, _)) = proxy.listener.accept().await {
                let (state, broker) = (proxy.state.clone(), broker.clone());
                tokio::spawn(async move {
                    let mut down = state.down.subscribe();
                    // A connection that ends is closed on both sides, whoever ended it.
                    tokio::select! {
                        () = forward(client, &broker, &state) => {}
                        _ = down.wait_for(|down| *down) => {}
                    }
                });
            }
        });
    }

    pub(crate) fn cut_after_the_next_commit(&self, cut: Cut) {
        self.state.cut.store(false, Ordering::Release);
        self.state.armed.store(if cut == Cut::Once { 1 } else { 2 }, Ordering::Release);
    }

    pub(crate) fn has_cut(&self) -> bool {
        self.state.cut.load(Ordering::Acquire)
    }

    pub(crate) fn mend(&self) {
        self.state.armed.store(0, Ordering::Release);
        self.state.down.send_replace(false);
    }
}

async fn forward(client: TcpStream, broker: &str, state: &State) {
    let Ok(upstream) = TcpStream::connect(broker).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_broker, mut to_broker) = upstream.into_split();
    tokio::select! {
        () = requests(&mut from_client, &mut to_broker, state) => {}
        _ = tokio::io::copy(&mut from_broker, &mut to_client) => {}
    }
}

/// Passes requests on, whole, until one is to be the last.
async fn requests(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, state: &State) {
    loop {
        let Ok(length) = from.read_u32().await else { return };
        if length > FRAME_BYTES_MAX {
            return;
        }
        let mut frame = vec![0; length as usize];
        if from.read_exact(&mut frame).await.is_err() {
            return;
        }
        let kind = frame.get(..2).map_or(0, |bytes| i16::from_be_bytes([bytes[0], bytes[1]]));
        if to.write_u32(length).await.is_err() || to.write_all(&frame).await.is_err() {
            return;
        }
        if kind == END_TRANSACTION {
            let armed = state.armed.swap(0, Ordering::AcqRel);
            if armed > 0 {
                state.cut.store(true, Ordering::Release);
                if armed == 2 {
                    state.down.send_replace(true);
                }
                return;
            }
        }
    }
}
