package main

import (
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
)

// newEtcdCommand serves one etcd member with the few flags that a single-node cluster needs.
func newEtcdCommand() *cobra.Command {
	var dataDir, clientURL, peerURL string
	var unsafeNoFsync bool
	command := &cobra.Command{
		Use:           "etcd",
		Short:         "Serve a single-member etcd",
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(*cobra.Command, []string) error {
			return serveEtcd(dataDir, clientURL, peerURL, unsafeNoFsync)
		},
	}
	flags := command.Flags()
	flags.StringVar(&dataDir, "data-dir", "", "directory that holds the member's data")
	flags.StringVar(&clientURL, "client-url", "http://127.0.0.1:2379", "URL that clients use")
	flags.StringVar(&peerURL, "peer-url", "http://127.0.0.1:2380", "URL that peers use")
	flags.BoolVar(&unsafeNoFsync, "unsafe-no-fsync", false, "do not sync the log to disk (for tests)")
	_ = command.MarkFlagRequired("data-dir")
	return command
}

func serveEtcd(dataDir, clientURL, peerURL string, unsafeNoFsync bool) error {
	client, err := url.Parse(clientURL)
	if err != nil {
		return fmt.Errorf("--client-url: %w", err)
	}
	peer, err := url.Parse(peerURL)
	if err != nil {
		return fmt.Errorf("--peer-url: %w", err)
	}
	config := embed.NewConfig()
	config.Name = "e2e"
	config.Dir = dataDir
	config.LogLevel = "warn"
	config.UnsafeNoFsync = unsafeNoFsync
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	server, err := embed.StartEtcd(config)
	if err != nil {
		return fmt.Errorf("failed to start etcd: %w", err)
	}
	defer server.Close()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	select {
	case <-stop:
		return nil
	case err := <-server.Err():
		return fmt.Errorf("etcd stopped: %w", err)
	}
}
