//! **Certificates** that nobody but one test trusts.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::RigError;

/// The files for a server that speaks TLS, all in PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// What the server shows.
    pub certificate: PathBuf,
    /// The key to that.
    pub key: PathBuf,
    /// Who has to have signed what clients show.
    pub authority: PathBuf,
    /// Whether clients have to show anything.
    pub asks_clients: bool,
}

/// An authority of a test's own, with a certificate for a server on this machine
/// (`localhost`, `127.0.0.1`) and one for a client.
///
/// They are made with the `openssl` command, and go when this is dropped.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use terrace_test::rig::{Certificates, RedisServer};
///
/// let certificates = Certificates::make()?;
/// let server = RedisServer::builder().tls(certificates.for_server()).start().await?;
/// assert!(server.url().starts_with("rediss://"));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Certificates {
    directory: TempDir,
}

impl Certificates {
    /// Makes all of them.
    ///
    /// # Errors
    /// `openssl` is not installed, or older than version 1.1.1.
    pub fn make() -> Result<Self, RigError> {
        let directory = tempfile::Builder::new().prefix("terrace-rig-").tempdir();
        let directory = directory.map_err(RigError::while_("making a temporary directory"))?;
        let (at, days) = (directory.path(), "2");
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let authority = ["-keyout", "authority.key", "-out", "authority.pem", "-days", days];
        let name = ["-subj", "/CN=an authority of a test"];
        openssl(at, [&["req", "-x509"][..], &key, &authority, &name].concat())?;

        let names = "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n";
        fs::write(at.join("names"), names).map_err(RigError::while_("writing certificates"))?;
        for (owner, serial) in [("server", "1"), ("client", "2")] {
            let (key_file, certificate) = (format!("{owner}.key"), format!("{owner}.pem"));
            let (name, asked) = (format!("/CN={owner}"), format!("{owner}.csr"));
            let files = ["-keyout", &key_file, "-out", &asked, "-subj", &name];
            openssl(at, [&["req"][..], &key, &files].concat())?;
            let signer = ["-CA", "authority.pem", "-CAkey", "authority.key"];
            let rest = ["-set_serial", serial, "-days", days, "-extfile", "names"];
            let files = ["-in", &asked, "-out", &certificate];
            openssl(at, [&["x509", "-req"][..], &files, &signer, &rest].concat())?;
        }
        Ok(Self { directory })
    }

    /// What a server needs that lets everybody in.
    #[must_use]
    pub fn for_server(&self) -> TlsFiles {
        TlsFiles {
            certificate: self.file("server.pem"),
            key: self.file("server.key"),
            authority: self.authority(),
            asks_clients: false,
        }
    }

    /// The authority that signed all of them: what a client has to trust.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.file("authority.pem")
    }

    /// What a client shows to a server that asks for it.
    #[must_use]
    pub fn client_certificate(&self) -> PathBuf {
        self.file("client.pem")
    }

    /// The key to that.
    #[must_use]
    pub fn client_key(&self) -> PathBuf {
        self.file("client.key")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

fn openssl(at: &Path, arguments: Vec<impl AsRef<OsStr>>) -> Result<(), RigError> {
    let output = Command::new("openssl").args(arguments).current_dir(at).output();
    let output = output.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            RigError::NotInstalled { program: "openssl".to_owned(), package: "openssl" }
        }
        _ => RigError::while_("starting openssl")(error),
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(RigError::DidNotStart {
        what: "openssl".to_owned(),
        why: format!("it ended with {}", output.status),
        log: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
