//! Many elements of a map at once: written, removed, walked over.
//!
//! By the calls that the kernel has for it (Linux 5.6; of tries 5.13). Knows the length of keys and values, not their
//! meaning. Called by what writes a generation, and by the walk over the flow table.

use crate::sys::{self, Batch, Many};
use aya::Pod;
use aya::maps::MapData;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{null, null_mut};

/// Elements of one call: more than any bucket of a hash table has, which the kernel gives whole.
pub(crate) const BATCH: usize = 4_096;

/// A map, by what is in it.
pub(crate) struct Elements<'a, K, V> {
    map: BorrowedFd<'a>,
    types: PhantomData<(K, V)>,
}

impl<'a, K: Pod + Default, V: Pod + Default> Elements<'a, K, V> {
    /// Of this map, if its keys and values are as long as these.
    pub(crate) fn of(map: &'a MapData) -> io::Result<Self> {
        let info = map.info().map_err(io::Error::other)?;
        let (key, value) = (info.key_size() as usize, info.value_size() as usize);
        if (key, value) != (size_of::<K>(), size_of::<V>()) {
            return Err(io::Error::other(format!("its keys have {key} bytes, its values {value}")));
        }
        Ok(Self { map: map.fd().as_fd(), types: PhantomData })
    }

    /// Writes all of these, over what is there.
    pub(crate) fn write(&self, entries: impl Iterator<Item = (K, V)>) -> io::Result<()> {
        let (mut keys, mut values): (Vec<K>, Vec<V>) = entries.unzip();
        for (keys, values) in keys.chunks_mut(BATCH).zip(values.chunks_mut(BATCH)) {
            self.many(Batch::Update, keys, Some(values))?;
        }
        Ok(())
    }

    /// Removes all of these, which are there.
    pub(crate) fn remove(&self, keys: impl Iterator<Item = K>) -> io::Result<()> {
        let mut keys: Vec<K> = keys.collect();
        keys.chunks_mut(BATCH).try_for_each(|keys| self.many(Batch::Delete, keys, None))
    }

    /// Removes this one.
    pub(crate) fn remove_one(&self, key: &K) -> io::Result<()> {
        // SAFETY: a key of the map.
        unsafe { sys::delete(self.map, std::ptr::from_ref(key).cast()) }
    }

    /// Every element, [`BATCH`] at a time; `seen` says whether to go on. It marks none as used.
    pub(crate) fn walk(&self, mut seen: impl FnMut(&[K], &[V]) -> bool) -> io::Result<()> {
        let (mut keys, mut values) = (vec![K::default(); BATCH], vec![V::default(); BATCH]);
        // A place in a hash table is a number, one in a trie a key.
        let place = || vec![0_u8; size_of::<K>().max(size_of::<u64>())];
        let (mut from, mut to, mut begun) = (place(), place(), false);
        loop {
            let many = Many {
                from: if begun { from.as_ptr() } else { null() },
                to: to.as_mut_ptr(),
                keys: keys.as_mut_ptr().cast(),
                values: values.as_mut_ptr().cast(),
                count: BATCH,
            };
            // SAFETY: so many keys and values there are, as long as the map's, and a place is long enough.
            let (count, done) = unsafe { sys::many(Batch::Lookup, self.map, many) };
            match done {
                Err(error) if is(&error, libc::ENOENT) => {
                    seen(&keys[..count], &values[..count]);
                    return Ok(());
                }
                Err(error) => return Err(error),
                Ok(()) if !seen(&keys[..count], &values[..count]) => return Ok(()),
                Ok(()) => std::mem::swap(&mut from, &mut to),
            }
            begun = true;
        }
    }

    fn many(&self, command: Batch, keys: &mut [K], values: Option<&mut [V]>) -> io::Result<()> {
        let many = Many {
            from: null(),
            to: null_mut(),
            keys: keys.as_mut_ptr().cast(),
            values: values.map_or(null_mut(), |values| values.as_mut_ptr().cast()),
            count: keys.len(),
        };
        // SAFETY: as many keys as are said, as long as the map's, and as many values where there are to be any.
        unsafe { sys::many(command, self.map, many) }.1
    }
}

fn is(error: &io::Error, code: i32) -> bool {
    error.raw_os_error() == Some(code)
}
