//! The lab's switch: a bridge in a network namespace of its own.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::Child;

use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use nix::sched::{CloneFlags, setns};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{Error, inside};

const BRIDGE: &str = "lan";

pub(super) struct Hub {
    program: PathBuf,
    holder: Child,
    namespace: File,
    address: Ipv4Addr,
    /// Whether machines reach the rest of the world through the hub.
    is_gateway: bool,
}

impl Hub {
    pub(super) fn new(program: &Path, address: Ipv4Addr) -> Result<Hub, Error> {
        let kernel = |source| Error::Kernel { action: "make a network namespace".into(), source };
        let mut holder = inside::start_hub(program).spawn().map_err(kernel)?;
        let mut word = String::new();
        let output = holder.stdout.take().expect("piped by start_hub");
        BufReader::new(output).read_line(&mut word).map_err(kernel)?;
        if word.trim() != "ready" {
            let _ = holder.wait();
            return Err(kernel(std::io::ErrorKind::PermissionDenied.into()));
        }
        let namespace = File::open(format!("/proc/{}/ns/net", holder.id())).map_err(kernel)?;
        let hub = Hub { program: program.to_owned(), holder, namespace, address, is_gateway: false };
        hub.netlink("make the lab's bridge", async move |net| {
            net.link().set(LinkUnspec::new_with_name("lo").up().build()).execute().await?;
            // A bridge without a card's address of its own takes that of a port, and another one when that
            // port goes: machines would not reach their gateway for half a minute because another one died.
            let card = vec![0x0a, 0x58, 0, 0, 0, 254];
            let bridge = LinkBridge::new(BRIDGE).address(card).forward_delay(0).up();
            net.link().add(bridge.build()).execute().await?;
            let bridge = index(&net, BRIDGE).await?;
            net.address().add(bridge, IpAddr::V4(address), 24).execute().await
        })?;
        Ok(hub)
    }

    /// The process that holds the namespace.
    pub(super) fn pid(&self) -> i32 {
        self.holder.id() as i32
    }

    /// The program that enters namespaces.
    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    /// Connects the network namespace of process `machine` to the bridge through `port`.
    pub(super) fn connect(&self, port: String, machine: i32, address: Ipv4Addr) -> Result<(), Error> {
        let far = File::open(format!("/proc/{machine}/ns/net")).map_err(Error::kernel("find the machine"))?;
        let far_fd = far.as_raw_fd();
        self.netlink("connect a machine", async move |net| {
            let bridge = index(&net, BRIDGE).await?;
            let mut peer = LinkMessage::default();
            // A machine keeps its network card: after a power cut its neighbours still know where it is.
            let [_, _, _, last] = address.octets();
            let card = vec![0x0a, 0x58, 0, 0, 0, last];
            peer.attributes = vec![
                LinkAttribute::IfName("eth0".into()),
                LinkAttribute::Address(card),
                LinkAttribute::NetNsFd(far_fd),
            ];
            let pair = LinkVeth::new(&port, "eth0")
                .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
                .controller(bridge)
                .up();
            net.link().add(pair.build()).execute().await
        })?;
        let gateway = self.gateway();
        netlink(&far, "give a machine its address", async move |net| {
            net.link().set(LinkUnspec::new_with_name("lo").up().build()).execute().await?;
            net.link().set(LinkUnspec::new_with_name("eth0").up().build()).execute().await?;
            give(&net, "eth0", address, gateway).await
        })
    }

    /// Gives the network namespace of process `machine` another card, whose other end, `end`, is connected to
    /// nothing.
    pub(super) fn add_card(
        &self,
        end: String,
        machine: i32,
        card: &str,
        address: Ipv4Addr,
        gateway: Option<Ipv4Addr>,
    ) -> Result<(), Error> {
        let far = File::open(format!("/proc/{machine}/ns/net")).map_err(Error::kernel("find the machine"))?;
        let far_fd = far.as_raw_fd();
        self.netlink("make a network card", async move |net| {
            let mut peer = LinkMessage::default();
            peer.attributes = vec![LinkAttribute::IfName(card.into()), LinkAttribute::NetNsFd(far_fd)];
            let pair = LinkVeth::new(&end, card).set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).up();
            net.link().add(pair.build()).execute().await
        })?;
        netlink(&far, "give a network card its address", async move |net| {
            net.link().set(LinkUnspec::new_with_name(card).up().build()).execute().await?;
            give(&net, card, address, gateway).await
        })
    }

    /// Takes the running machine's address away and gives it another one, as a lease that was not renewed.
    pub(super) fn readdress(&self, machine: i32, address: Ipv4Addr) -> Result<(), Error> {
        let far = File::open(format!("/proc/{machine}/ns/net")).map_err(Error::kernel("find the machine"))?;
        let gateway = self.gateway();
        netlink(&far, "give a machine another address", async move |net| {
            let eth0 = index(&net, "eth0").await?;
            let old: Vec<_> = net.address().get().set_link_index_filter(eth0).execute().try_collect().await?;
            for old in old.into_iter().filter(|old| old.header.family == AddressFamily::Inet) {
                net.address().del(old).execute().await?;
            }
            give(&net, "eth0", address, gateway).await
        })
    }

    /// Machines connected from now on have the hub as their gateway.
    pub(super) fn become_gateway(&mut self) {
        self.is_gateway = true;
    }

    fn gateway(&self) -> Option<Ipv4Addr> {
        self.is_gateway.then_some(self.address)
    }

    /// Switches a port on or off.
    pub(super) fn plug(&self, port: &str, plugged: bool) -> Result<(), Error> {
        let link = LinkUnspec::new_with_name(port);
        let link = if plugged { link.up() } else { link.down() };
        self.netlink("switch a port", async move |net| net.link().set(link.build()).execute().await)
    }

    fn netlink<W>(&self, action: &str, work: W) -> Result<(), Error>
    where
        W: AsyncFnOnce(Handle) -> Result<(), rtnetlink::Error> + Send,
    {
        netlink(&self.namespace, action, work)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// Talks to the kernel about another network namespace, from a thread that ends afterwards.
fn netlink<W>(namespace: &File, action: &str, work: W) -> Result<(), Error>
where
    W: AsyncFnOnce(Handle) -> Result<(), rtnetlink::Error> + Send,
{
    let talk = || {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            tokio::spawn(connection);
            work(handle).await.map_err(std::io::Error::other)
        })
    };
    std::thread::scope(|scope| scope.spawn(talk).join())
        .unwrap_or_else(|_| Err(std::io::Error::other("the thread ended early")))
        .map_err(Error::kernel(action))
}

async fn give(
    net: &Handle,
    card: &str,
    address: Ipv4Addr,
    gateway: Option<Ipv4Addr>,
) -> Result<(), rtnetlink::Error> {
    net.address().add(index(net, card).await?, IpAddr::V4(address), 24).execute().await?;
    if let Some(gateway) = gateway {
        net.route().add(RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build()).execute().await?;
    }
    Ok(())
}

async fn index(net: &Handle, name: &str) -> Result<u32, rtnetlink::Error> {
    let found = net.link().get().match_name(name.to_owned()).execute().try_next().await?;
    found.map(|link| link.header.index).ok_or(rtnetlink::Error::RequestFailed)
}
