//! A **port** of the loopback device that stays ours while its server is down.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::{TcpListener, TcpSocket};

use super::RigError;

/// A port that nobody else is given as long as this lives.
#[derive(Debug)]
pub(super) struct Port {
    number: u16,
    _holder: Option<TcpSocket>,
}

impl Port {
    /// A free port.
    ///
    /// Linux lets a server listen on an address to which a socket is bound that does not
    /// listen, if both allow it, and gives it to nobody who asks for any free port. So the
    /// port is held by such a socket, or somebody's outgoing connection could get it while
    /// the server is down. On other systems the port is only likely to stay free.
    pub(super) fn reserve() -> Result<Self, RigError> {
        let bind = || {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(cfg!(target_os = "linux"))?;
            socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
            Ok((socket.local_addr()?.port(), socket))
        };
        let (number, socket) = bind().map_err(RigError::while_("looking for a free port"))?;
        Ok(Self { number, _holder: cfg!(target_os = "linux").then_some(socket) })
    }

    pub(super) fn number(&self) -> u16 {
        self.number
    }

    pub(super) fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.number))
    }
}

/// Listens at the address of a port that is held.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1_024)
}
