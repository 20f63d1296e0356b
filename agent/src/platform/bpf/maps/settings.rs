//! What the agent tells all programs, and the next agent: the one entry of SETTINGS.

use veer_common::maps::{Settings, name};

use super::{Maps, failed};
use crate::platform::bpf::BpfError;
use crate::platform::bpf::pins::Pins;

impl Maps {
    /// Makes the maps ours: refuses those of another ABI, and writes our settings.
    ///
    /// # Errors
    /// `Abi` for a foreign version.
    pub fn claim(&mut self, pins: &Pins, abi_version: u32) -> Result<(), BpfError> {
        let found = self.settings.get(&0, 0).map_err(failed("read", name::SETTINGS))?;
        if found.abi_version != 0 && found.abi_version != abi_version {
            let path = pins.root().to_owned();
            return Err(BpfError::Abi { path, found: found.abi_version, ours: abi_version });
        }
        // Nobody watches a new agent yet, whatever the last one was doing when it ended.
        self.set_settings(Settings { abi_version, watched: 0, build: found.build })
    }

    /// Which build's programs are attached; 0 where that was interrupted, or none ever were.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn build(&self) -> Result<u64, BpfError> {
        Ok(self.settings.get(&0, 0).map_err(failed("read", name::SETTINGS))?.build)
    }

    /// Says which build's programs are attached; 0 before they are replaced.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn set_build(&mut self, build: u64) -> Result<(), BpfError> {
        let settings = self.settings.get(&0, 0).map_err(failed("read", name::SETTINGS))?;
        self.set_settings(Settings { build, ..settings })
    }

    /// Turns events on or off for the whole node.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn set_watched(&mut self, watched: bool) -> Result<(), BpfError> {
        let settings = self.settings.get(&0, 0).map_err(failed("read", name::SETTINGS))?;
        self.set_settings(Settings { watched: u32::from(watched), ..settings })
    }

    fn set_settings(&mut self, settings: Settings) -> Result<(), BpfError> {
        self.settings.set(0, settings, 0).map_err(failed("write to", name::SETTINGS))
    }
}
