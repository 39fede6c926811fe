//! The **place** of a directory: whether its file system is one of this machine's own, and how much
//! of it there is.
//!
//! SQLite's write-ahead log has an index that all processes share in memory, and locks that all of
//! them see. A file system that other machines have mounted too keeps neither promise, and a
//! database there is damaged sooner or later (<https://sqlite.org/wal.html>, <https://sqlite.org/useovernet.html>).

use std::path::Path;

use crate::error::BuildError;

/// Refuses a directory on a file system that other machines may share.
#[cfg(target_os = "linux")]
pub(super) fn check(directory: &Path) -> Result<(), BuildError> {
    // What cannot be told is not refused: opening will say what is wrong.
    let Ok(found) = rustix::fs::statfs(directory) else { return Ok(()) };
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::unnecessary_cast,
        reason = "a magic number has 32 bits, whatever the kernel's word for it has"
    )]
    let magic = found.f_type as u32;
    match network(magic, || type_of_mount(directory)) {
        Some(kind) => Err(BuildError::NetworkFileSystem { path: directory.into(), kind }),
        None => Ok(()),
    }
}

/// Bytes that a directory may take at most, because its file system has no more. A little of it is
/// the file system's own.
pub(super) fn most_bytes(directory: &Path) -> u64 {
    let Ok(found) = rustix::fs::statvfs(directory) else { return u64::MAX };
    match found.f_blocks.saturating_mul(found.f_frsize) {
        // Of some it is not known.
        0 => u64::MAX,
        all => all - all / 16,
    }
}

/// Bytes that its file system has left.
pub(super) fn free_bytes(directory: &Path) -> u64 {
    let found = rustix::fs::statvfs(directory);
    found.map_or(u64::MAX, |found| found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(not(target_os = "linux"))]
pub(super) fn check(_: &Path) -> Result<(), BuildError> {
    Ok(())
}

/// The name of the file system of this number, if others than this machine may write to it.
///
/// Of what a program serves (FUSE) the number does not tell what is behind it: that takes the name
/// under which it is mounted.
#[cfg(target_os = "linux")]
fn network(magic: u32, mounted_as: impl FnOnce() -> Option<String>) -> Option<&'static str> {
    // linux/magic.h, and what the makers of the others say.
    match magic {
        0x0000_6969 => Some("NFS"),
        0x0000_517b | 0xfe53_4d42 | 0xff53_4d42 => Some("SMB"),
        0x0102_1997 => Some("9p"),
        0x5346_414f | 0x6b41_4653 => Some("AFS"),
        0x7375_7245 => Some("Coda"),
        0x0000_564c => Some("NCP"),
        0x00c3_6400 => Some("Ceph"),
        0x0bd0_0bd0 => Some("Lustre"),
        0x4750_4653 => Some("GPFS"),
        0x0116_1970 => Some("GFS2"),
        0x7461_636f => Some("OCFS2"),
        0x1983_0326 => Some("BeeGFS"),
        0xaad7_aaea => Some("PanFS"),
        0x786f_4256 => Some("a folder of VirtualBox"),
        0xbacb_acbc => Some("a folder of VMware"),
        0x6573_5546 if !is_of_this_machine(mounted_as().as_deref()) => {
            Some("FUSE, with another machine behind it as far as can be told")
        }
        _ => None,
    }
}

/// Whether what a program serves is on a device of this machine: a device itself, or the layers of
/// a container.
#[cfg(target_os = "linux")]
fn is_of_this_machine(mounted_as: Option<&str>) -> bool {
    matches!(mounted_as, Some("fuseblk" | "fuse.fuse-overlayfs"))
}

/// What the file system of a directory was mounted as.
#[cfg(target_os = "linux")]
fn type_of_mount(directory: &Path) -> Option<String> {
    let device = rustix::fs::stat(directory).ok()?.st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    type_in(&std::fs::read_to_string("/proc/self/mountinfo").ok()?, &format!("{major}:{minor}"))
}

/// The type of a device's file system in the kernel's list of mounts.
#[cfg(target_os = "linux")]
fn type_in(mounts: &str, device: &str) -> Option<String> {
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some(device))?;
    let (_, after) = mount.split_once(" - ")?;
    Some(after.split(' ').next()?.to_owned())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::{check, network, type_in};

    const FUSE: u32 = 0x6573_5546;

    #[test]
    fn file_systems_of_other_machines_are_told_from_our_own() {
        let unasked = || panic!("its number says enough");
        let shared = [
            (0x6969, "NFS"),
            (0x517b, "SMB"),
            (0xff53_4d42, "SMB"),
            (0xfe53_4d42, "SMB"),
            (0x0102_1997, "9p"),
            (0x00c3_6400, "Ceph"),
            (0x0bd0_0bd0, "Lustre"),
        ];
        for (magic, name) in shared {
            assert_eq!(network(magic, unasked), Some(name), "{magic:x}");
        }
        // ext, XFS, Btrfs, tmpfs, ramfs, overlay, ZFS, F2FS, exFAT, and one that nobody knows.
        let own: [u32; 10] = [
            0xef53,
            0x5846_5342,
            0x9123_683e,
            0x0102_1994,
            0x8584_58f6,
            0x794c_7630,
            0x2fc1_2fc1,
            0xf2f5_2010,
            0x2011_bab0,
            0x1234_5678,
        ];
        for magic in own {
            assert_eq!(network(magic, unasked), None, "{magic:x}");
        }
    }

    #[test]
    fn what_a_program_serves_is_judged_by_its_name() {
        for name in ["fuse.sshfs", "fuse.s3fs", "fuse", "virtiofs"] {
            assert!(network(FUSE, || Some(name.to_owned())).is_some(), "{name}");
        }
        assert!(network(FUSE, || None).is_some());
        for name in ["fuseblk", "fuse.fuse-overlayfs"] {
            assert_eq!(network(FUSE, || Some(name.to_owned())), None, "{name}");
        }
    }

    #[test]
    fn the_list_of_mounts_is_read() {
        let mounts = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:37 / /mnt/a\\040b rw shared:2 master:1 - fuse.sshfs me@there:/ rw,user_id=0
41 22 0:38 / /run rw - tmpfs none rw
";
        assert_eq!(type_in(mounts, "0:37").as_deref(), Some("fuse.sshfs"));
        assert_eq!(type_in(mounts, "0:38").as_deref(), Some("tmpfs"));
        assert_eq!(type_in(mounts, "0:3"), None);
        assert_eq!(type_in("nonsense", "0:3"), None);
    }

    #[test]
    fn a_directory_of_this_machine_is_accepted() {
        check(tempfile::tempdir().unwrap().path()).unwrap();
    }
}
