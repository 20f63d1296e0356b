//! Of an object that the linker has made: what the kernel gets of it, and nothing else.
//!
//! DWARF, which BTF is made of, is most of the file, and nobody reads it. The agent parses the pods' object anew for each, and
//! the kernel keeps what it is given with each: of that one, maps that no program refers to, which the linker keeps because
//! the library has them, go as well, and BTF, which is needed where it defines maps. The node's object makes all maps,
//! those included that the agent alone uses.

use object::build::elf::{Builder, Section, SectionData, SectionId, SymbolId};
use object::build::{ByteString, Error};
use object::elf::SHT_STRTAB;

/// The sections of map definitions, in the form of aya and in that of BTF.
const MAPS: [&[u8]; 2] = [b"maps", BTF_MAPS];
const BTF_MAPS: &[u8] = b".maps";

/// Which maps an object keeps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Maps {
    /// All of them.
    All,
    /// Those that a program refers to.
    Used,
}

/// The object without DWARF, and without the maps that it is not to keep.
pub(crate) fn bare(object: &[u8], maps: Maps) -> Result<Vec<u8>, Error> {
    let mut elf = Builder::read(object)?;
    delete_sections(&mut elf, |section| is_about(section, b".debug_"));
    if maps == Maps::Used {
        delete_unused_maps(&mut elf);
    }
    // LLVM has one table for the names of symbols and sections; the builder wants two.
    let names = elf.sections.add();
    names.name = ByteString::from(".shstrtab");
    names.sh_type = SHT_STRTAB;
    names.data = SectionData::SectionString;
    let mut bare = Vec::new();
    elf.write(&mut bare)?;
    Ok(bare)
}

/// Deletes the maps that no program refers to, and BTF with the last of those that it defines.
fn delete_unused_maps(elf: &mut Builder<'_>) {
    let used = used_symbols(elf);
    let maps: Vec<SectionId> = elf
        .sections
        .iter()
        .filter(|section| MAPS.contains(&section.name.as_slice()))
        .map(Section::id)
        .collect();
    let is_map = |section: Option<SectionId>| section.is_some_and(|section| maps.contains(&section));
    for symbol in &mut elf.symbols {
        symbol.delete = is_map(symbol.section) && !used.contains(&symbol.id());
    }
    let left: Vec<SectionId> =
        elf.symbols.iter().filter(|symbol| !symbol.delete).filter_map(|symbol| symbol.section).collect();
    delete_sections(elf, |section| maps.contains(&section.id()) && !left.contains(&section.id()));
    if !elf.sections.iter().any(|section| !section.delete && section.name.as_slice() == BTF_MAPS) {
        delete_sections(elf, |section| is_about(section, b".BTF"));
    }
}

fn delete_sections(elf: &mut Builder<'_>, is_unneeded: impl Fn(&Section<'_>) -> bool) {
    for section in &mut elf.sections {
        section.delete |= is_unneeded(section);
    }
}

/// Whether it is a section of that name, or its relocations.
fn is_about(section: &Section<'_>, name: &[u8]) -> bool {
    let of = section.name.as_slice();
    of.strip_prefix(b".rel").unwrap_or(of).starts_with(name)
}

/// What the programs refer to.
fn used_symbols(elf: &Builder<'_>) -> Vec<SymbolId> {
    let mut used = Vec::new();
    for section in elf.sections.iter().filter(|section| !section.delete && !is_about(section, b".BTF")) {
        if let SectionData::Relocation(relocations) = &section.data {
            used.extend(relocations.iter().filter_map(|relocation| relocation.symbol));
        }
    }
    used
}
