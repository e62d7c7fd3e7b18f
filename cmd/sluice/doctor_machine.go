package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// slowSync is an fsync that a request notices: the spool syncs once for all that wait.
const slowSync = 50 * time.Millisecond

func (d *doctor) spool(context.Context) {
	dir := d.cfg.spool.dir
	st, err := os.Stat(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		// serve makes it; what counts is the directory that it will be made in.
		parent := filepath.Dir(filepath.Clean(dir))
		if _, err := os.Stat(parent); err != nil {
			d.fails("spool", plain(err), "make "+parent+", or mount the volume there")
			return
		}
		d.ok("spool", "%s is not there yet; serve makes it in %s", dir, parent)
		dir = parent
	case err != nil:
		d.fails("spool", plain(err), "let this user read and write it")
		return
	case !st.IsDir():
		d.fails("spool", dir+" is no directory", "give a directory of this edge's own")
		return
	case st.Mode().Perm()&0o077 != 0:
		d.warn("spool", fmt.Sprintf("its mode is %04o", st.Mode().Perm()), "chmod 700 "+dir+": it holds telemetry")
	}
	took, err := tryDisk(dir)
	switch {
	case err != nil:
		d.fails("spool disk", plain(err), "let this user write there, and see that the disk is mounted read-write and not full")
		return
	case took > slowSync:
		d.warn("spool disk", fmt.Sprintf("an fsync took %s", took.Round(time.Microsecond)), "put it on a local SSD: while Kafka is away each request waits for an fsync")
	default:
		d.ok("spool disk", "it can be written; an fsync took %s", took.Round(time.Microsecond))
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		d.warn("spool space", plain(err), "see for yourself that it has room")
		return
	}
	free := int64(fs.Bavail) * int64(fs.Bsize)
	need := d.cfg.spool.maxBytes + d.cfg.spool.minFreeBytes
	switch {
	case free <= d.cfg.spool.minFreeBytes:
		d.fails("spool space", byteSize(free)+" free", "free some, or lower --spool-min-free-bytes: the spool leaves "+byteSize(d.cfg.spool.minFreeBytes)+" free and so takes nothing")
	case free < need:
		d.warn("spool space", byteSize(free)+" free", "--spool-max-bytes and --spool-min-free-bytes want "+byteSize(need)+" together: the disk fills before the spool does")
	default:
		d.ok("spool space", "%s free of the %s that the spool may take", byteSize(free), byteSize(d.cfg.spool.maxBytes))
	}
}

// tryDisk writes and syncs a file in dir, and takes it away again. It returns the shorter of two syncs: the first may pay for others'.
func tryDisk(dir string) (time.Duration, error) {
	f, err := os.CreateTemp(dir, ".doctor-*")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	block := make([]byte, 64<<10)
	_, _ = rand.Read(block)
	least := time.Duration(1<<63 - 1)
	for range 2 {
		if _, err := f.Write(block); err != nil {
			return 0, err
		}
		start := time.Now()
		if err := f.Sync(); err != nil {
			return 0, err
		}
		least = min(least, time.Since(start))
	}
	return least, nil
}

func (d *doctor) certificate(context.Context) {
	b, err := os.ReadFile(d.cfg.tlsCert)
	if err != nil {
		d.fails("certificate", plain(err), "mend --tls-cert")
		return
	}
	block, _ := pem.Decode(b)
	if block == nil {
		d.fails("certificate", d.cfg.tlsCert+" holds no PEM", "mend --tls-cert")
		return
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		d.fails("certificate", plain(err), "mend --tls-cert")
		return
	}
	now := time.Now()
	until := "good until " + cert.NotAfter.UTC().Format(time.RFC3339)
	switch {
	case now.After(cert.NotAfter):
		d.fails("certificate", "it ended at "+cert.NotAfter.UTC().Format(time.RFC3339), "renew it; the edge reads the files again within ten seconds")
	case now.Before(cert.NotBefore):
		d.fails("certificate", "it begins at "+cert.NotBefore.UTC().Format(time.RFC3339), "look at this machine's clock")
	case cert.NotAfter.Sub(now) < 14*24*time.Hour:
		d.warn("certificate", until, "renew it; the edge reads the files again within ten seconds")
	default:
		d.ok("certificate", "%s, for %v", until, cert.DNSNames)
	}
}

// ports takes and lets go each address that serve is to listen on.
func (d *doctor) ports(context.Context) {
	for _, p := range []struct {
		flag, addr string
		needed     bool
	}{
		{"edge-addr", d.cfg.edgeAddr, d.runs(roleEdge)}, {"grpc-addr", d.cfg.grpcAddr, d.runs(roleEdge)},
		{"admin-addr", d.cfg.adminAddr, d.runs(roleAdmin)}, {"ops-addr", d.cfg.opsAddr, true},
	} {
		if !p.needed {
			continue
		}
		ln, err := net.Listen("tcp", p.addr)
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			d.warn("port", "--"+p.flag+" "+p.addr+" is taken", "if that is the running sluice, all is well; else set --"+p.flag)
		case err != nil:
			d.fails("port", "--"+p.flag+" "+p.addr+": "+plain(err), "set --"+p.flag+" to an address of this machine, with a port that this user may take")
		default:
			ln.Close()
			d.ok("port", "--%s %s is free", p.flag, p.addr)
		}
	}
}

// files looks at the limit of open files: each connection of a client is one, and so is each of ours.
func (d *doctor) files(context.Context) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		d.warn("open files", plain(err), "see for yourself: ulimit -n")
		return
	}
	need := uint64(1000)
	if d.runs(roleEdge) {
		need += 2 * uint64(d.cfg.maxConnections)
	}
	if limit.Cur < need {
		d.warn("open files", fmt.Sprintf("this shell allows %d", limit.Cur), fmt.Sprintf("allow %d (ulimit -n, LimitNOFILE=): two listeners of --max-connections each, and our own", need))
		return
	}
	d.ok("open files", "%d are allowed, %d may be needed", limit.Cur, need)
}
