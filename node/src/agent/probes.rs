//! Probes of a container, from the node: HTTP and TCP to the pod's address.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Whether the probe succeeds within `limit`.
pub(super) async fn probe(
    pod: &Pod,
    container: &str,
    probe: &Probe,
    address: Option<&String>,
    limit: Duration,
) -> bool {
    let Some(address) = address else { return false };
    let container = pod.spec.iter().flat_map(|spec| &spec.containers).find(|found| found.name == container);
    let probing = async {
        if let Some(get) = &probe.http_get {
            return http_get(get, container, address).await.unwrap_or(false);
        }
        if let Some(tcp) = &probe.tcp_socket {
            let host = tcp.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(address);
            let Some(port) = port(&tcp.port, container) else { return false };
            return TcpStream::connect((host, port)).await.is_ok();
        }
        // Validation lets no other kind through: see the README's limits.
        false
    };
    timeout(limit, probing).await.unwrap_or(false)
}

async fn http_get(get: &HTTPGetAction, container: Option<&Container>, address: &str) -> Option<bool> {
    let host = get.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(address);
    let port = port(&get.port, container)?;
    let stream = TcpStream::connect((host, port)).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    tokio::spawn(connection);
    let path = get.path.as_deref().filter(|path| path.starts_with('/')).unwrap_or("/");
    let mut request = http::Request::get(path)
        .header("host", format!("{host}:{port}"))
        .header("user-agent", "kube-probe/skein");
    for header in get.http_headers.iter().flatten() {
        request = request.header(&header.name, &header.value);
    }
    let answer = sender.send_request(request.body(Empty::<Bytes>::new()).ok()?).await.ok()?;
    // 200 to 399, as the API reference has it.
    Some(answer.status().is_success() || answer.status().is_redirection())
}

fn port(port: &IntOrString, container: Option<&Container>) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => {
            let mut ports = container?.ports.iter().flatten();
            let named = ports.find(|port| port.name.as_deref() == Some(name));
            u16::try_from(named?.container_port).ok()
        }
    }
}
