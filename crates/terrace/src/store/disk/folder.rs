//! The **folder** of large values: one file each beside the database.
//!
//! A file has a random number, by which its row in the database knows it; the number alone makes
//! its path, `files-…/ab/cdef…`, so that no key and nothing that is read from a database can name
//! another place. Every step goes from one open directory to the next and follows no link.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, mkdirat, open, openat, unlinkat};
use rustix::io::Errno;

/// What the names of all folders begin with.
const PREFIX: &str = "files-";

/// An open directory, its links not followed and not handed to child processes.
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Bytes from one look to the next, when it is found out what of a file is in the cache: what is read
/// ahead at once is no less.
const LOOKED_AT_EVERY: usize = 128 << 10;

#[derive(Debug)]
pub(super) struct Folder {
    root: OwnedFd,
    name: String,
    /// The open folder, once it was needed.
    open: Mutex<Option<Arc<OwnedFd>>>,
}

impl Folder {
    /// The folder with this number in the directory `root`. It is made when the first file is.
    pub(super) fn new(root: &Path, number: i64) -> io::Result<Self> {
        let root = open(root, DIRECTORY, Mode::empty())?;
        let name = format!("{PREFIX}{:016x}", number.cast_unsigned());
        Ok(Self { root, name, open: Mutex::new(None) })
    }

    /// A new number for a file, in one of so many directories.
    pub(super) fn number(shards: u8) -> i64 {
        let number = fastrand::u64(..);
        let shard = (number >> 56) % u64::from(shards.max(1));
        (number & (u64::MAX >> 8) | shard << 56).cast_signed()
    }

    /// Writes a file that must not be there yet. Nothing is left of one that fails.
    pub(super) fn write(&self, number: i64, bytes: &[u8]) -> io::Result<()> {
        let (shard, name) = names(number);
        let shard = self.shard_to_write(&shard)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(&shard, &*name, flags, Mode::RUSR | Mode::WUSR)?);
        file.write_all(bytes).inspect_err(|_| {
            // If it stays, the sweep finds it: no row will know it.
            let _ = unlinkat(&shard, &*name, AtFlags::empty());
        })
    }

    /// The bytes of a file; none if it is not there, and no bytes if something else than the
    /// file that was written is in its place.
    pub(super) fn read(&self, number: i64, length: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match self.open_to_read(number) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if is_obstacle(&error) => return Ok(Some(Vec::new())),
            Err(error) => return Err(error),
        };
        let found = fstat(&file)?;
        let is_ours = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
            && found.st_nlink == 1
            && u64::try_from(found.st_size) == Ok(length);
        let Some(room) = usize::try_from(length).ok().filter(|_| is_ours) else {
            return Ok(Some(Vec::new()));
        };
        let mut bytes = Vec::with_capacity(room);
        // Into memory that nobody has filled before, and as much at once as there is.
        while bytes.len() < room {
            match rustix::io::read(&file, spare_capacity(&mut bytes)) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(bytes))
    }

    /// Whether all of a file is in the operating system's cache, as far as can be told: reading it
    /// waits for no disk then.
    pub(super) fn is_cached(&self, number: i64, length: u64) -> bool {
        let Ok(file) = self.open_to_read(number) else { return false };
        let last = length.saturating_sub(1);
        (0..last).step_by(LOOKED_AT_EVERY).chain([last]).all(|at| is_cached(&file, at))
    }

    /// Removes a file. One that is not there is removed.
    pub(super) fn remove(&self, number: i64) -> io::Result<()> {
        let (shard, name) = names(number);
        let removed = self.shard(&shard).and_then(|shard| Ok(remove(&shard, &name)?));
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// The numbers of the files in one of the directories, from 0 to 255.
    pub(super) fn list(&self, shard: u8) -> io::Result<Vec<i64>> {
        let opened = match self.shard(&format!("{shard:02x}")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let names = names_in(opened.as_fd())?;
        Ok(names.iter().filter_map(|name| number_of(shard, name)).collect())
    }

    /// Removes up to `most` files that are in folders of databases that are no more.
    pub(super) fn remove_others(&self, most: usize) -> io::Result<usize> {
        let mut left = most;
        for name in names_in(self.root.as_fd())? {
            let is_other = name != self.name && name.strip_prefix(PREFIX).is_some_and(is_hex::<16>);
            if is_other && left > 0 {
                // What only has such a name, a link say, is not a folder of ours.
                let Ok(other) = openat(&self.root, &*name, DIRECTORY, Mode::empty()) else {
                    continue;
                };
                left = left.saturating_sub(empty(&other, left)?);
                // It may have files yet.
                let _ = unlinkat(&self.root, &*name, AtFlags::REMOVEDIR);
            }
        }
        Ok(most - left)
    }

    fn open_to_read(&self, number: i64) -> io::Result<File> {
        let (shard, name) = names(number);
        let shard = self.shard(&shard)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        Ok(File::from(openat(&shard, &*name, flags, Mode::empty())?))
    }

    fn shard(&self, name: &str) -> io::Result<OwnedFd> {
        let folder = self.folder(false)?;
        Ok(openat(&folder, name, DIRECTORY, Mode::empty())?)
    }

    fn shard_to_write(&self, name: &str) -> io::Result<OwnedFd> {
        let open_or_make = || {
            let folder = self.folder(true)?;
            match openat(&folder, name, DIRECTORY, Mode::empty()) {
                Err(Errno::NOENT) => make(&folder, name),
                other => Ok(other?),
            }
        };
        open_or_make().or_else(|error| {
            // Somebody may have removed the folder that is open.
            *self.open.lock() = None;
            if error.kind() == io::ErrorKind::NotFound { open_or_make() } else { Err(error) }
        })
    }

    fn folder(&self, may_make: bool) -> io::Result<Arc<OwnedFd>> {
        let mut open = self.open.lock();
        if let Some(folder) = &*open {
            return Ok(Arc::clone(folder));
        }
        let folder = match openat(&self.root, &*self.name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) if may_make => make(&self.root, &self.name)?,
            other => other?,
        };
        Ok(Arc::clone(open.insert(Arc::new(folder))))
    }
}

/// Whether reading the byte at a place waits for nothing.
#[cfg(target_os = "linux")]
fn is_cached(file: &File, at: u64) -> bool {
    use rustix::io::{ReadWriteFlags, preadv2};

    let mut byte = [0];
    let read = preadv2(file, &mut [io::IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT);
    read == Ok(1)
}

/// Other systems do not say.
#[cfg(not(target_os = "linux"))]
fn is_cached(_: &File, _: u64) -> bool {
    false
}

/// Makes a directory for its owner alone, unless somebody else just did, and opens it.
fn make(parent: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    match mkdirat(&parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(openat(&parent, name, DIRECTORY, Mode::empty())?),
        Err(error) => Err(error.into()),
    }
}

fn remove(directory: impl AsFd, name: &str) -> rustix::io::Result<()> {
    unlinkat(directory, name, AtFlags::empty())
}

/// Removes up to `most` files of a folder, and the directories that are empty then.
fn empty(folder: &OwnedFd, most: usize) -> io::Result<usize> {
    let mut removed = 0;
    for shard in names_in(folder.as_fd())?.iter().filter(|name| is_hex::<2>(name)) {
        let directory = openat(folder, &**shard, DIRECTORY, Mode::empty())?;
        for name in names_in(directory.as_fd())?.iter().filter(|name| is_hex::<14>(name)) {
            if removed == most {
                return Ok(removed);
            }
            remove(&directory, name)?;
            removed += 1;
        }
        let _ = unlinkat(folder, &**shard, AtFlags::REMOVEDIR);
    }
    Ok(removed)
}

/// The names in a directory that are text, as all of ours are.
fn names_in(directory: BorrowedFd<'_>) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        if let Ok(name) = entry?.file_name().to_str()
            && name != "."
            && name != ".."
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// The directory and the name of a file.
fn names(number: i64) -> (String, String) {
    let number = number.cast_unsigned();
    (format!("{:02x}", number >> 56), format!("{:014x}", number & (u64::MAX >> 8)))
}

/// The number of a file, if it has a name that we give.
fn number_of(shard: u8, name: &str) -> Option<i64> {
    let low = is_hex::<14>(name).then(|| u64::from_str_radix(name, 16).ok())??;
    Some((u64::from(shard) << 56 | low).cast_signed())
}

fn is_hex<const DIGITS: usize>(name: &str) -> bool {
    name.len() == DIGITS && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether something that is no file, or no directory, was in the way.
fn is_obstacle(error: &io::Error) -> bool {
    let errors = [Errno::LOOP, Errno::NOTDIR, Errno::ISDIR, Errno::NXIO].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| errors.contains(&code))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use rustix::fs::{Advice, fadvise};

    use super::*;

    #[test]
    fn a_file_that_is_on_the_disk_alone_is_not_cached() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path(), 7).unwrap();
        let (number, bytes) = (Folder::number(255), vec![7; 4 << 20]);
        let length = bytes.len() as u64;
        assert!(!folder.is_cached(number, length), "there is none");
        folder.write(number, &bytes).unwrap();
        let mut file = folder.open_to_read(number).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        assert!(!folder.is_cached(number, length), "all of it is on the disk alone");
        file.read_exact(&mut [0]).unwrap();
        assert!(!folder.is_cached(number, length), "its end is on the disk alone");
    }

    #[test]
    fn a_number_is_a_path_of_hexadecimal_digits_and_back() {
        for number in [0, -1, 1, i64::MIN, 0x0123_4567_89ab_cdef, Folder::number(255)] {
            let (shard, name) = names(number);
            assert!(is_hex::<2>(&shard) && is_hex::<14>(&name), "{shard}/{name}");
            let shard = u8::from_str_radix(&shard, 16).unwrap();
            assert_eq!(number_of(shard, &name), Some(number));
        }
        for name in
            ["", "..", "0123456789abc", "0123456789abcdg", "+123456789abcd", "../../56789abc"]
        {
            assert_eq!(number_of(7, name), None, "{name}");
        }
    }
}
