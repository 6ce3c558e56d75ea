#!/bin/bash
# pack_mpi.sh [DIR=.gpu/mpi]: copies what mpirun and libmpi of Open MPI 4 need on one host from this system (Debian) into DIR.tar.gz, for a
# machine with GPUs and no MPI: unpacked it works wherever it lies, after `. DIR/env.sh`. Networks beyond TCP are left out.
set -eu
to=${1:-.gpu/mpi}
from=$(dirname "$(ldconfig -p | awk '/libmpi\.so\.40 /{print $NF; exit}')")
plugins=$(ompi_info --parsable --path pkglibdir | sed -n 's/^path:pkglibdir://p;q')
[ -d "$plugins" ] || { echo "no Open MPI here: apt-get install openmpi-bin"; exit 69; }
rm -rf "$to" && mkdir -p "$to"/{bin,lib/openmpi3,lib/pmix,share,etc}
cp -L "$(readlink -f "$(command -v mpirun)")" "$to/bin/mpirun"
cp -L "$(command -v orted)" "$to/bin/"
cp -r "$(ompi_info --parsable --path pkgdatadir | sed -n 's/^path:pkgdatadir://p;q')" "$to/share/"
skipped='lib(uct|ucp|fabric|psm|infinipath|ibverbs|rdmacm|oshmem|mca_common_(ucx|ofi|verbs|monitoring)|ompio)'
for f in "$plugins"/mca_*.so; do
  ldd "$f" | grep -Eq "$skipped" || cp -L "$f" "$to/lib/openmpi3/"
done
cp -L "$from/libmpi.so.40" "$to/lib/"
[ ! -d "$from/pmix2/lib/pmix" ] || cp -L "$from"/pmix2/lib/pmix/*.so "$to/lib/pmix/"
for f in "$to"/bin/* "$to"/lib/*.so* "$to"/lib/openmpi3/*.so; do ldd "$f" | awk '$3 ~ /^\// {print $3}'; done | sort -u |
  grep -Ev '/(libc|libm|libdl|libpthread|librt|libutil|libgcc_s|libstdc\+\+|ld-linux.*)\.so' | while read -r library; do
  [ -e "$to/lib/$(basename "$library")" ] || cp -L "$library" "$to/lib/"
done
strip --strip-unneeded "$to"/bin/* "$to"/lib/*.so* "$to"/lib/*/*.so 2>/dev/null || true
cat >"$to/env.sh" <<'END'
# . env.sh: this Open MPI in PATH and LD_LIBRARY_PATH
mpi=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export OPAL_PREFIX=$mpi OPAL_EXEC_PREFIX=$mpi OPAL_BINDIR=$mpi/bin OPAL_LIBDIR=$mpi/lib OPAL_PKGLIBDIR=$mpi/lib/openmpi3
export OPAL_DATADIR=$mpi/share OPAL_PKGDATADIR=$mpi/share/openmpi OPAL_SYSCONFDIR=$mpi/etc
export PMIX_INSTALL_PREFIX=$mpi PMIX_LIBDIR=$mpi/lib PMIX_PKGLIBDIR=$mpi/lib/pmix
export PATH=$mpi/bin:$PATH LD_LIBRARY_PATH=$mpi/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
END
tar -C "$(dirname "$to")" -czf "$to.tar.gz" "$(basename "$to")"
rm -r "$to"
echo "$to.tar.gz: $(stat -c %s "$to.tar.gz") bytes"
